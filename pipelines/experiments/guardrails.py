"""Guardrails: harm that ends a challenger before its experiment does. Each compares one thing with the champion.

Three rest on means of blocks, by a bet that may be looked at after every block (`eprocess`): a harmless challenger is
ever stopped by one of them with a chance of at most `level`. The others are limits of what one account, or one process,
bears. Size and power of each are measured in docs/results/ab.md. On probation the new champion is the one that is
watched, compared with the version before; "challenger" below is the version that is watched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.contracts import Floats, JsonObject
from pipelines.errors import BadShape, BadValues
from pipelines.experiments.eprocess import e_process, rejected_at
from pipelines.params import GuardrailParams

GUARDRAIL = "guardrail"  # kind of the alarm; its detail begins with `experiment N: `
Metric = Literal["fault", "latency", "abstention", "novelty", "calibration", "drawdown"]
# One large bet: block means lie far inside of what is possible, so that a larger one would win more, were there one.
HARM_BETS = (0.9,)
# Block means further than this in the harmless direction count as so much, so that the bet can be larger: three
# fifths more blocks would be needed without. They hardly ever lie there; how often: docs/results/ab.md
HARM_CLIP = 0.5
LATENCY_ANSWERS = 50
LATENCY_ALONE = 30  # of them; with 26 a machine that slows both arms to just about the limit trips by chance


@dataclass(frozen=True, slots=True)
class Guardrail:
    """Describe one guardrail.

    window  what it looks at; of: whether a limit is of the challenger's arm or of the whole account
    action  what follows when it trips
    """

    metric: Metric
    window: str
    of: Literal["arm", "account"]
    action: str


STOP = "its experiment is stopped, it decides nothing more"  # on probation: see flows.support.promotion
SINCE_START = "every block since the experiment began"
GUARDRAILS = (
    Guardrail("fault", "every answer", "arm", STOP),
    Guardrail("latency", f"the last {LATENCY_ANSWERS} answers", "arm", STOP),
    Guardrail("abstention", SINCE_START, "arm", STOP),
    Guardrail("novelty", SINCE_START, "arm", STOP),
    Guardrail("calibration", SINCE_START, "arm", STOP),
    Guardrail("drawdown", "the account's equity since it began to decide", "account", STOP),
)


@dataclass(frozen=True, slots=True)
class Harm:
    """Hold what a guardrail found so far.

    value    in the unit of its limit; None before there is anything to look at
    e_value  of a guardrail on blocks: when it tripped, else after the newest block; None of the others
    after    how many blocks, or answers, or values of equity it took to trip; None if it did not
    reason   why it tripped; None if it did not
    """

    metric: Metric
    value: float | None = None
    e_value: float | None = None
    after: int | None = None
    reason: str | None = None


def fault_harm(faults: Sequence[str | None]) -> Harm:
    """Return the harm of faults: the first one trips, whatever comes later.

    faults  of each answer of the challenger, in time order: what failed (its code raised, or gave no number), or None
    """
    count = sum(fault is not None for fault in faults)
    for at, fault in enumerate(faults, start=1):
        if fault is not None:
            return Harm("fault", float(count), None, at, f"an answer was a fault: {fault}")
    return Harm("fault", 0.0)


def latency_harm(champion_ms: Floats, challenger_ms: Floats, limit_ms: float) -> Harm:
    """Return the harm of slow answers: at LATENCY_ALONE of the last LATENCY_ANSWERS closes only the challenger was.

    champion_ms, challenger_ms  (n,) of the same closes in time order, ms; NaN refused; older ones are not looked at

    The challenger's median is then above the limit and the champion's is not. The two medians alone would trip on a
    machine that slows both arms to just about the limit. Needs LATENCY_ANSWERS answers.
    Raises  BadShape for times of other closes, BadValues for one that is not finite
    """
    pair = _pair(champion_ms, challenger_ms)
    if pair.shape[1] < LATENCY_ANSWERS:
        return Harm("latency")
    champion, challenger = pair[:, -LATENCY_ANSWERS:]
    alone = int(((challenger > limit_ms) & (champion <= limit_ms)).sum())
    median, other = float(np.median(challenger)), float(np.median(champion))
    if alone < LATENCY_ALONE:
        return Harm("latency", median)
    reason = (
        f"at {alone} of the last {LATENCY_ANSWERS} closes it alone took more than {limit_ms:g} ms to answer: median "
        f"{median:.3g} ms, of the other version {other:.3g} ms"
    )
    return Harm("latency", median, None, pair.shape[1], reason)


def _pair(champion: Floats, challenger: Floats) -> Floats:
    """Return (2, n) times. Raises BadShape, BadValues."""
    first, second = (np.asarray(times, dtype=np.float64) for times in (champion, challenger))
    if first.shape != second.shape or first.ndim != 1:
        raise BadShape(f"{first.shape} times of the champion, {second.shape} of the challenger; pass one of each close")
    pair = np.stack([first, second])
    if not np.isfinite(pair).all():
        raise BadValues(f"{int((~np.isfinite(pair)).sum())} of {pair.size} times are not finite")
    return pair


def drawdown_harm(equity: Floats, limit: float) -> Harm:
    """Return the harm to the account: its loss from the highest equity since the challenger began to act.

    equity  (n,) of the account in time order, from the moment at which the challenger began to act; NaN refused
    limit   share of that highest equity; a larger loss trips, also if it was made good later
    Raises  BadValues for equity that is not a positive number
    """
    equity = np.asarray(equity, dtype=np.float64)
    if not len(equity):
        return Harm("drawdown")
    if not (np.isfinite(equity).all() and equity.min() > 0.0):
        raise BadValues("equity must be positive and finite: an account without money is not one to try a model on")
    losses = 1.0 - equity / np.maximum.accumulate(equity)
    over = np.flatnonzero(losses > limit)
    if not len(over):
        return Harm("drawdown", float(losses[-1]))
    loss = float(losses[over[0]])
    reason = f"the account lost {loss:.2%} since it began to decide; {limit:.2%} is the limit"
    return Harm("drawdown", loss, None, int(over[0]) + 1, reason)


BLOCK_WORDS: Mapping[Metric, str] = {
    "abstention": "its share of abstentions is {value:.1%} above the other version's",
    "novelty": "its share of inputs unlike its training is {value:.1%} above the other version's",
    "calibration": "its mean probability is {value:+.3f} away from what happened",
}


def block_harm(metric: Metric, means: Floats, limit: float, level: float) -> Harm:
    """Return the harm that block means show; it may be looked at after every block, and trips at 1 / level.

    means   (b,) in time order, each -1 … 1, NaN refused. abstention, novelty: of the challenger's 1 or 0 less the
            champion's, of every decision; calibration: of the challenger's probability less the outcome, 1 or 0
    limit   largest mean, given what came before, that does no harm; of calibration in either direction, half of the
            stake on each
    level   chance that a challenger within the limit ever trips, at most; exactly, of means clipped at -HARM_CLIP
    Returns value = mean of the blocks until it tripped, or of all
    Raises  BadValues for another metric, a mean outside of -1 … 1, or a limit or level that is not between 0 and 1
    """
    means = np.asarray(means, dtype=np.float64)
    if metric not in BLOCK_WORDS:
        raise BadValues(f"{metric} does not rest on blocks; those that do: {', '.join(BLOCK_WORDS)}")
    if not (0.0 < limit < 1.0 and 0.0 < level < 1.0):
        raise BadValues(f"limit={limit}, level={level}: both must be between 0 and 1")
    if not len(means):
        return Harm(metric)
    if not np.abs(means).max() <= 1.0 + 1e-12:
        raise BadValues(f"a block mean of {metric} is {means[np.abs(means).argmax()]:.4g}, outside of -1 to 1")
    signs = (1.0, -1.0) if metric == "calibration" else (1.0,)
    clipped = [np.maximum(sign * means, -HARM_CLIP) for sign in signs]
    e_values = np.mean([e_process(each - limit, HARM_CLIP + limit, HARM_BETS) for each in clipped], axis=0)
    at = rejected_at(e_values, level)
    until = len(means) if at is None else at + 1
    value, e_value = float(means[:until].mean()), float(e_values[until - 1])
    if at is None:
        return Harm(metric, value, e_value)
    words = BLOCK_WORDS[metric].format(value=value)
    reason = f"{words} after {until} blocks, {limit:g} is allowed: e-value {e_value:.3g} reached {1.0 / level:.3g}"
    return Harm(metric, value, e_value, until, reason)


def limit_of(metric: Metric, params: GuardrailParams) -> float:
    """Return the limit of a metric, in its unit: faults, ms, or a share."""
    limits: dict[Metric, float] = {
        "fault": 0.0, "latency": params.latency_ms, "abstention": params.abstention, "novelty": params.novelty,
        "calibration": params.calibration, "drawdown": params.drawdown,
    }  # fmt: skip
    return limits[metric]


def guardrail_rows(harms: Mapping[Metric, Harm], params: GuardrailParams) -> list[JsonObject]:
    """Return a row for every guardrail, in the order of GUARDRAILS, JSON-ready.

    harms    metric → what it found; one that is absent has not looked yet
    Returns  metric, window, limit, of, action, value, e_value, trips_at (the e-value), tripped: the reason or null
    """
    rows = []
    for rail in GUARDRAILS:
        harm = harms.get(rail.metric, Harm(rail.metric))
        rows.append({
            "metric": rail.metric, "window": rail.window, "limit": limit_of(rail.metric, params), "of": rail.of,
            "action": rail.action, "value": harm.value, "e_value": harm.e_value,
            "trips_at": 1.0 / params.level if rail.metric in BLOCK_WORDS else None, "tripped": harm.reason,
        })  # fmt: skip
    return rows
