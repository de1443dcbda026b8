"""Watch a champion's edge: is the live gain over the base rate still what the gate saw?

Log loss itself says little: it follows the market, and a rise of 10 % is more than all the skill there is. So each
resolved outcome is scored against the base rate of the champion's training, and an e-process on block means
(`experiments/eprocess.py`) tests, after every block and for as long as the champion serves, the hypothesis "the gain is
at least `edge_share` of what the gate saw". An alarm says: that share is gone, at the stated rate of false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Estimate, Floats
from pipelines.experiments.eprocess import BlockScores, anytime_p, block_means, e_process
from pipelines.models.edge import Edge, paired_gains
from pipelines.monitoring.drift import DAYS_A_MONTH
from pipelines.params import DriftParams, Params

NO_EDGE = "its bundle states no gain over a base rate"


@dataclass(frozen=True, slots=True)
class LossDrift:
    """Hold the state of the test.

    alarm     whether the stated share of the gain is gone; None: not known, with the cause in `reason`
    gain      live gain over the base rate, mean of block means in nats, 95 % t interval; n counts blocks
    p         anytime p of "the gain is at least `least`"; alpha: where it alarms; NaN where nothing was tested
    expected  gain out of fold, nats; least: the share of it that is tested
    alarm_at_s  epoch seconds of the start of the block that decided; None without an alarm
    blocks    the scores behind it
    """

    alarm: bool | None
    reason: str
    gain: Estimate
    p: float
    alpha: float
    expected: float
    least: float
    alarm_at_s: float | None
    blocks: BlockScores


def loss_alpha(params: Params) -> float:
    """Return the risk of one false alarm a champion: the monthly budget times the shortest life of a champion.

    At most one champion a retrain interval is promoted on average; one that serves longer spends nothing more.
    """
    return min(0.5, params.drift.false_alarms_a_month.loss * params.retrain.interval_days / DAYS_A_MONTH)


def pooled_until(newest_s: Sequence[float], horizon_s: float) -> float:
    """Return up to when the outcomes of several markets are known together, epoch seconds.

    newest_s   newest moment known of each market, one or more: a block of time waits for the slowest of them
    horizon_s  one that is further behind than this has stopped, or is closed, and holds nothing up
    """
    newest = max(newest_s)
    return min(moment for moment in newest_s if moment >= newest - horizon_s)


def unwatched(reason: str) -> LossDrift:
    """Return a result that abstains."""
    nan, none = float("nan"), np.empty(0)
    return LossDrift(
        None, reason, Estimate(nan, nan, nan, 0), nan, nan, nan, nan, None,
        BlockScores(none, none, none.astype(np.int64)),
    )  # fmt: skip


def loss_drift(
    at_s: Floats, p: Floats, y: Floats, edge: Edge | None, params: Params, *, origin_s: float, until_s: float
) -> LossDrift:
    """Test the champion's live gain over the base rate on all whole blocks since `origin_s`.

    at_s, p, y  (n,) epoch seconds of the decisions, probabilities and outcomes in {0, 1}; NaN refused
    edge        what the champion's bundle states; None: an earlier release stated nothing
    origin_s    epoch seconds of the champion's newest training outcome; until_s: up to which outcomes are known
    Raises      BadShape, BadValues
    """
    if edge is None:
        return unwatched(NO_EDGE)
    if edge.gain <= 0.0:
        return unwatched(f"the gate saw no gain over the base rate ({edge.gain:+.4f} nats), so none can vanish")
    gains = paired_gains(p, y, edge.base_rate, edge.log_odds)
    blocks = block_means(
        at_s, gains, origin_s=origin_s, until_s=until_s, horizon_s=edge.horizon_s, horizons=edge.block_horizons
    )
    least, alpha = params.drift.edge_share * edge.gain, loss_alpha(params)
    gain = blocks.interval()
    if gain.n == 0:
        reason = f"no whole block of outcomes yet ({len(at_s)} outcomes)"
        return LossDrift(None, reason, gain, float("nan"), alpha, edge.gain, least, None, blocks)
    over = anytime_p(e_process(least - blocks.mean, edge.bound - least))
    hit = np.flatnonzero(over <= alpha)
    alarm = len(hit) > 0
    reason = (
        f"gain over the base rate {_figure(gain)} nats on {gain.n} blocks ({int(blocks.n.sum())} outcomes), "
        f"{edge.gain:.4f} out of fold; p {over[-1]:.3g} that it is still {least:.4f}, alarm at {alpha:.3g}: "
        + ("edge gone" if alarm else "not shown to be gone")
    )
    at = float(blocks.start_s[hit[0]]) if alarm else None
    return LossDrift(alarm, reason, gain, float(over[-1]), alpha, edge.gain, least, at, blocks)


def harm(loss: LossDrift, edge: Edge | None, since_s: float, params: DriftParams) -> str:
    """Return whether what began at `since_s` (epoch seconds) does harm: "harmful", "harmless" or "not yet known".

    Harmful: the share of the gain is proven gone on the blocks since then; harmless: a gain over the base rate is
    proven on them; each at risk `harm_alpha`, whenever one looks.
    """
    if edge is None or not np.isfinite(loss.least):
        return f"not yet known: {loss.reason}"
    blocks = loss.blocks.since(since_s)
    if len(blocks.mean) == 0:
        return "not yet known: no whole block of outcomes since"
    gone = anytime_p(e_process(loss.least - blocks.mean, edge.bound - loss.least))[-1]
    lowest = -edge.lowest
    there = anytime_p(e_process(blocks.mean, lowest))[-1]
    word = "harmful" if gone <= params.harm_alpha else "harmless" if there <= params.harm_alpha else "not yet known"
    return f"{word}: gain since then {_figure(blocks.interval())} nats on {len(blocks.mean)} blocks"


def _figure(gain: Estimate) -> str:
    """Return a gain with its interval, where there is one."""
    return f"{gain.value:+.4f}" + ("" if np.isnan(gain.low) else f" [{gain.low:+.4f}, {gain.high:+.4f}]")
