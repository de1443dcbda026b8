"""Detect degradation of a model by the log loss of resolved outcomes, with two tests.

Degradation: the mean live loss against the champion's out-of-sample loss, with an interval, on enough outcomes.
Page-Hinkley: a sequential test for the start of a rise of the loss. Log loss is noisy: on its own, Page-Hinkley reports
a rise for most steady models within a few hundred outcomes, so it only counts if the mean confirms it.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Estimate, Floats
from pipelines.errors import BadValues
from pipelines.evaluation.metrics import block_indices, default_block
from pipelines.models.losses import log_losses
from pipelines.params import DriftParams


@dataclass(frozen=True, slots=True)
class PageHinkley:
    """Hold `statistic` (n,) after each loss, and the index of the first over the threshold, None if none was."""

    statistic: Floats
    alarm_at: int | None


def page_hinkley(losses: Floats, delta: float, threshold: float) -> PageHinkley:
    """Run the Page-Hinkley test for a rise of the mean.

    losses     (n,) in time order of resolution; nats; NaN refused
    delta      tolerated rise of the mean, nats
    threshold  alarm if the sum of (loss - mean so far - delta) is this far above its lowest point, nats; a larger one
               gives fewer false alarms and later true ones
    Raises     BadValues on NaN
    Source     Page 1954, Biometrika 41, 100-115; Gama et al. 2014, ACM Computing Surveys 46(4), sec. 3.2.1
    """
    if not np.isfinite(losses).all():
        raise BadValues(
            f"{int((~np.isfinite(losses)).sum())} of {len(losses)} losses are not finite; pass resolved outcomes only"
        )
    if len(losses) == 0:
        return PageHinkley(np.empty(0), None)
    means = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    sums = np.cumsum(losses - means - delta)
    statistic = sums - np.minimum.accumulate(np.minimum(sums, 0.0))  # the sum starts at zero
    over = np.flatnonzero(statistic > threshold)
    return PageHinkley(statistic, int(over[0]) if len(over) else None)


@dataclass(frozen=True, slots=True)
class LossDrift:
    """Hold the result of both tests.

    alarm        None: too few outcomes, with their number in `reason`
    change       live loss over reference loss minus one, 95 % interval, n outcomes; NaN without outcomes
    live         mean live log loss, nats; reference: the champion's out of sample
    rise_at      index of the outcome at which Page-Hinkley first found a rise; None: never
    """

    alarm: bool | None
    reason: str
    change: Estimate
    live: float
    reference: float
    rise_at: int | None


def loss_drift(p: Floats, y: Floats, reference: Estimate, params: DriftParams, draws: int, seed: int) -> LossDrift:
    """Compare live log loss with the champion's out-of-sample loss.

    p, y       (n,) calibrated probabilities and outcomes in {0, 1}, in time order of resolution; NaN refused
    reference  the champion's mean log loss out of sample, with its interval
    draws      of the moving-block bootstrap; the reference's own uncertainty is drawn with it, as a normal
    Alarm      on at least `min_outcomes`, if the interval of the change is above zero, and the mean loss is
               `loss_degradation` or more above the reference or Page-Hinkley found a rise
    Raises     BadShape, BadValues
    """
    if not (np.isfinite([reference.value, reference.low, reference.high]).all() and reference.value > 0):
        raise BadValues(
            f"the reference loss is {reference.value} [{reference.low}, {reference.high}]; evaluate the model first"
        )
    losses = log_losses(p, y)
    n = len(losses)
    if n == 0:
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return LossDrift(
            None, f"no outcome yet, {params.min_outcomes} needed", nothing, float("nan"), reference.value, None
        )
    live = float(losses.mean())
    means = losses[block_indices(n, default_block(n), draws, seed)].mean(axis=1)
    deviation = (reference.high - reference.low) / (2 * 1.96)
    references = reference.value + deviation * np.random.default_rng([seed, 1]).standard_normal(draws)
    low, high = np.quantile((means - references) / reference.value, [0.025, 0.975])
    change = Estimate(live / reference.value - 1.0, float(low), float(high), n)
    rise = page_hinkley(losses, params.loss_delta, params.loss_threshold).alarm_at
    figures = (
        f"log loss {live:.4f} against {reference.value:.4f} out of sample: {change.value:+.1%} "
        f"[{change.low:+.1%}, {change.high:+.1%}], n={n}"
    )
    if n < params.min_outcomes:
        return LossDrift(None, f"{figures}; {params.min_outcomes} needed", change, live, reference.value, rise)
    worse = change.low > 0
    degraded = worse and change.value >= params.loss_degradation
    rising = worse and rise is not None
    reason = f"{figures}; limit {params.loss_degradation:+.0%} with an interval above zero: " + (
        "degraded" if degraded else "not degraded"
    )
    if rise is not None:
        reason += f"; Page-Hinkley rise at outcome {rise + 1}" + ("" if worse else ", not confirmed by the mean")
    return LossDrift(degraded or rising, reason, change, live, reference.value, rise)
