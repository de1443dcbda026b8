"""Input and output of stress scenarios: the portfolio, the recorded markets, the result."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    OPEN_TIME,
    Estimate,
    Floats,
    JsonObject,
    finite_or_none,
)
from pipelines.errors import BadShape, BadTimes, BadValues

NOTHING: Floats = np.empty(0)


@dataclass(frozen=True, slots=True)
class Portfolio:
    """Hold positions in k assets that are opened together and not traded again until a stop closes them.

    weights   (k,) signed fractions of equity at entry, negative if short
    stops     (k,) distance of the stop from the entry as a fraction of price; NaN = none
    cost_bps  of one side, of the position's value: fee and half of the ordinary spread
    Raises    BadShape if lengths differ; BadValues for a weight or cost that is not finite, or a stop not above 0
    """

    weights: Floats
    stops: Floats
    cost_bps: float

    def __post_init__(self) -> None:
        """Check shapes and values."""
        if self.weights.ndim != 1 or self.weights.shape != self.stops.shape:
            raise BadShape(f"weights {self.weights.shape} and stops {self.stops.shape}; expected (k,) both.")
        if not np.isfinite(self.weights).all() or not 0.0 <= self.cost_bps < np.inf:
            raise BadValues(
                f"weights {self.weights.tolist()}, cost {self.cost_bps} bps: pass finite weights and a cost >= 0."
            )
        if (self.stops <= 0.0).any():
            raise BadValues(f"stops {self.stops.tolist()}: pass a distance above 0, or NaN for none.")

    @property
    def cost(self) -> float:
        """Return the cost of one side as a fraction of a position's value."""
        return self.cost_bps / 1e4

    @property
    def gross(self) -> float:
        """Return the gross exposure as a fraction of equity."""
        return float(np.abs(self.weights).sum())


@dataclass(frozen=True, slots=True)
class MarketHistory:
    """Hold what scenarios read of k assets; missing data makes a scenario absent.

    bars         (n, k, 9) of `step_s` seconds, the same open time across a row, ascending; prices finite
    spread       (n, k) ask less bid as a fraction of the mid price; NaN = not recorded
    crises       (m, k, 9) bars of `crises_step_s` seconds that cover windows of `crises.CRISES`; None = not given
    crises_market  the market of that path, if one market's path is used for all assets
    equity       in quote currency, for costs that depend on absolute size; None = not given
    Raises       BadShape, BadTimes (rows out of order) or BadValues (a price that is not finite and above 0)
    """

    symbols: tuple[str, ...]
    step_s: float
    bars: Floats
    spread: Floats
    crises: Floats | None = None
    crises_step_s: float = 3600.0
    crises_market: str = ""
    equity: float | None = None

    def __post_init__(self) -> None:
        """Check shapes, times and prices."""
        k = len(self.symbols)
        for name, bars in (("bars", self.bars), ("crises", self.crises)):
            if bars is None:
                continue
            if bars.ndim != 3 or bars.shape[1:] != (k, BAR_WIDTH):
                raise BadShape(f"{name} {bars.shape} of {k} assets; expected (rows, {k}, {BAR_WIDTH}).")
            prices = bars[:, :, [OPEN, HIGH, LOW, CLOSE]]
            if not (np.isfinite(prices) & (prices > 0.0)).all():
                raise BadValues(f"{name}: a price is not finite and above 0. Pass bars that quality.assess accepted.")
            if (np.diff(bars[:, 0, OPEN_TIME]) <= 0.0).any() or (bars[:, :, OPEN_TIME] != bars[:, :1, OPEN_TIME]).any():
                raise BadTimes(
                    f"{name}: rows are not ascending, or of different times across assets. Join and sort them first."
                )
        if self.spread.shape != self.bars.shape[:2]:
            raise BadShape(f"spread {self.spread.shape} for bars {self.bars.shape}; expected {self.bars.shape[:2]}")

    @property
    def returns(self) -> Floats:
        """Return (n - 1, k) simple returns from close to close; the gap of a closed market is one return."""
        close = self.bars[:, :, CLOSE]
        return np.ascontiguousarray(close[1:] / close[:-1] - 1.0)


@dataclass(frozen=True, slots=True)
class StressResult:
    """Hold a portfolio's loss under one scenario: figures, or the reason why there are none (law L1).

    loss            largest fall below the highest booked equity, as a fraction of it: equity at entry for what is
                    opened once. An account counts its drawdown so, and its limit applies to this figure
    drawdown        the same below the highest mark, which counts profit never taken; at least the loss
                    Neither is negative. Bounds are 95 %, NaN if the figure is exact
    figures         further ones by name, in the unit of the name; fractions of equity otherwise
    at, path        (m,) epoch seconds and drawdown; empty without a path
    samples         (draws,) losses whose quantiles are given; empty if nothing was drawn
    absent          the reason why there are no figures
    """

    scenario: str
    method: str
    loss: Estimate | None = None
    drawdown: Estimate | None = None
    n: int = 0
    detail: str = ""
    figures: dict[str, Estimate] = field(default_factory=dict)
    at: Floats = field(default_factory=lambda: NOTHING)
    path: Floats = field(default_factory=lambda: NOTHING)
    samples: Floats = field(default_factory=lambda: NOTHING)
    absent: str | None = None

    def to_dict(self) -> JsonObject:
        """Return the result JSON-ready, without the long arrays; None where a figure is unknown."""
        arrays = ("at", "path", "samples")
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in arrays}


def _plain(value: Any) -> Any:
    """Return a value as plain data; an Estimate as value, bounds and n."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, Estimate):
        bounds = {name: finite_or_none(getattr(value, name)) for name in ("value", "low", "high")}
        return bounds | {"n": value.n}
    return value


def exact_estimate(value: float, n: int) -> Estimate:
    """Return an exact figure of n rows: without bounds."""
    return Estimate(float(value), float("nan"), float("nan"), n)
