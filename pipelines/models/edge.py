"""A model's edge: what it gains on the base rate of its own training, in log loss, on blocks of outcomes.

The gate measures it out of fold, the bundle stores it, and the watch tests whether it is still there. A prediction
counts at most `log_odds` away from the base rate, so that a block's mean has a bound that is known beforehand.
"""

from dataclasses import dataclass
from math import exp, log

import numpy as np

from pipelines.contracts import Floats, JsonObject
from pipelines.experiments.eprocess import block_means
from pipelines.models.calibration_and_novelty import logit
from pipelines.models.losses import log_losses
from pipelines.params import DriftParams


@dataclass(frozen=True, slots=True)
class Edge:
    """Hold what a bundle states about its gain over the base rate, as measured out of fold.

    base_rate   weighted share of class 1 in the training rows
    gain        mean gain of the blocks, nats an outcome; low, high its 95 % t interval, None under 15 blocks
    blocks      number of blocks; horizon_s longest time from a decision to its outcome, seconds
    log_odds, block_horizons  as in `params.drift` at training: live outcomes are scored the same way
    """

    base_rate: float
    gain: float
    low: float | None
    high: float | None
    blocks: int
    horizon_s: float
    log_odds: float
    block_horizons: int

    @property
    def bound(self) -> float:
        """Return the largest gain of one outcome, nats: no mean of a block exceeds it."""
        up, down = self._furthest()
        return max(log(up / self.base_rate), log((1.0 - down) / (1.0 - self.base_rate)))

    @property
    def lowest(self) -> float:
        """Return the smallest gain of one outcome, nats, negative: no mean of a block falls below it."""
        up, down = self._furthest()
        return min(log(down / self.base_rate), log((1.0 - up) / (1.0 - self.base_rate)))

    def _furthest(self) -> tuple[float, float]:
        """Return the highest and the lowest probability that counts."""
        odds = self.base_rate / (1.0 - self.base_rate)
        up, down = odds * exp(self.log_odds), odds * exp(-self.log_odds)
        return up / (1.0 + up), down / (1.0 + down)


def paired_gains(p: Floats, y: Floats, base_rate: Floats | float, log_odds: float) -> Floats:
    """Return (n,) log loss of the base rate minus that of p moved to within `log_odds` of it, nats.

    p, y       (n,) probabilities and outcomes in {0, 1}; NaN refused. base_rate one, or (n,)
    Raises     BadShape, BadValues
    """
    rate = np.broadcast_to(np.asarray(base_rate, dtype=np.float64), np.shape(p))
    middle = logit(rate)
    near = 1.0 / (1.0 + np.exp(-np.clip(logit(p), middle - log_odds, middle + log_odds)))
    return np.asarray(log_losses(rate, y) - log_losses(near, y))


def measure_edge(
    known_s: Floats, p: Floats, y: Floats, rates: Floats, *, base_rate: float, horizon_s: float, params: DriftParams
) -> JsonObject:
    """Return the JSON of the `Edge` of a model from its out-of-fold rows; empty without a whole block.

    known_s    (n,) epoch seconds of the decisions; p, y (n,); rates (n,) base rate of each row's own training window
    base_rate  of the final fit's training rows
    """
    gains = paired_gains(p, y, rates, params.edge_log_odds)
    blocks = block_means(
        known_s, gains, origin_s=float(known_s.min()), until_s=float(known_s.max()) + horizon_s, horizon_s=horizon_s,
        horizons=params.edge_block_horizons,
    )  # fmt: skip
    if len(blocks.mean) == 0:
        return {}
    gain = blocks.interval()
    return {
        "base_rate": base_rate, "gain": gain.value, "blocks": gain.n, "horizon_s": horizon_s,
        "low": gain.low if np.isfinite(gain.low) else None, "high": gain.high if np.isfinite(gain.high) else None,
        "log_odds": params.edge_log_odds, "block_horizons": params.edge_block_horizons,
    }  # fmt: skip
