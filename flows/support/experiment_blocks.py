"""The score of each block of an experiment: mean gain of the challenger on outcomes that both arms scored, or why none.

A block is one of time, with the outcomes of every symbol in it. It does not count where something else than the models
differed inside it: a close without a decision, a symbol that came or went, a corrected bar.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from math import floor, inf, isfinite

import numpy as np

from flows.support.experiment_guardrails import harm_of_blocks
from flows.support.experiments import NO_MODEL, POLICY_ARMS, TRADITIONAL
from flows.support.installation import Installation, now
from flows.support.live_outcomes import decision_grid
from flows.support.traditional_arm import of_traditional
from pipelines.contracts import Floats, JsonObject, utc
from pipelines.experiments.eprocess import block_means
from pipelines.store import RUNNING, BlockScore, Experiment

NAMED = 3  # symbols that a void block names
INSTANT_S = 1e-3  # what a close at the edge of a block is moved by, to belong to it

Pairs = Callable[[Installation, Experiment, datetime, datetime], Iterator[tuple[float, float]]]


def new_blocks(installation: Installation, experiment: Experiment) -> list[BlockScore]:
    """Return the scores of the whole blocks that have none yet, in their order.

    A block waits until the outcomes of its last decisions are known in every market that still has bars; without those
    of one that has none any more it is void.
    """
    stored = installation.store.block_scores(experiment.number)
    first = stored[-1].number + 1 if stored else 0
    through = outcomes_through(installation)
    until_s = known_until(installation, experiment, through) + experiment.horizon_s
    if not isfinite(until_s):
        return []
    period_s = experiment.period_s
    count = floor((until_s - experiment.origin_s) / period_s)
    if experiment.max_blocks:
        count = min(count, experiment.max_blocks)
    if count <= first:
        return []
    since, until = (utc(experiment.origin_s + number * period_s) for number in (first, count))
    means = mean_gains(installation, experiment, since, until, until_s)
    harm = {} if experiment.family == POLICY_ARMS else harm_of_blocks(installation, experiment, since, until)
    made = []
    for number in range(first, count):
        start_s = experiment.origin_s + number * period_s
        mean, n = means.get(number, (None, 0))
        end_s = start_s + experiment.horizons * experiment.horizon_s
        why = void(installation, start_s, end_s, experiment.horizon_s, through)
        if not why and mean is None:
            why = "no outcome that both arms scored"
        of_block = harm.get(number, {})
        made.append(BlockScore(experiment.number, number, start_s, n, None if why else mean, why, now(), of_block))
    return made


def outcomes_through(installation: Installation) -> dict[str, float]:
    """Return symbol → newest decision whose outcomes were looked at, market time in epoch seconds; none of a symbol
    without one."""
    found = {symbol: installation.store.family_outcomes_through(symbol) for symbol in installation.symbols}
    return {symbol: moment.timestamp() for symbol, moment in found.items() if moment is not None}


def known_until(installation: Installation, experiment: Experiment, through: Mapping[str, float]) -> float:
    """Return up to which decision the outcomes are known in every market with bars, epoch seconds; -inf without one.

    Markets are looked at one after the other, and a fast one moves on meanwhile: the last one counts. A market whose
    bars ended a block ago, or that never had one, is not waited for.
    """
    found = {symbol: installation.store.newest_close(symbol) for symbol in installation.symbols}
    newest = {symbol: close for symbol, close in found.items() if close is not None}
    oldest = max(newest.values(), default=-inf) - experiment.period_s
    return min((through.get(symbol, -inf) for symbol, close in newest.items() if close >= oldest), default=-inf)


def mean_gains(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime, until_s: float
) -> dict[int, tuple[float, int]]:
    """Return number of a block → (mean gain, outcomes), of the whole blocks between two moments that have outcomes."""
    pairs = ARMS[experiment.challenger] if experiment.family == POLICY_ARMS else of_versions
    at_s, gains = np.array(list(pairs(installation, experiment, since, until)), dtype=np.float64).reshape(-1, 2).T
    blocks = block_means(
        at_s, gains, origin_s=experiment.origin_s, until_s=until_s, horizon_s=experiment.horizon_s,
        horizons=experiment.horizons,
    )  # fmt: skip
    period_s = experiment.period_s
    numbers = np.rint((blocks.start_s - experiment.origin_s) / period_s).astype(int)
    return {
        number: (mean, n)
        for number, mean, n in zip(numbers.tolist(), blocks.mean.tolist(), blocks.n.tolist(), strict=True)
    }


def of_versions(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime
) -> Iterator[tuple[float, float]]:
    """Yield (time of the decision, loss of the champion less the challenger's) of outcomes that both scored."""
    champion, challenger = experiment.champion_digest, experiment.challenger_digest
    for one in installation.store.family_outcomes(experiment.family, since, until):
        if champion in one.losses and challenger in one.losses:
            yield one.as_of.timestamp(), one.losses[champion] - one.losses[challenger]


def of_every_event(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime
) -> Iterator[tuple[float, float]]:
    """Yield (time of the decision, net bps of taking the event less what the policy made of it) of resolved events.

    Both take the whole event or nothing: sizes are left out, for the two would differ by them alone.
    """
    for record, outcome in installation.store.resolved(since, until):
        taken = record.decision.action != "NO_TRADE"
        yield record.decision.as_of.timestamp(), 0.0 if taken else outcome.net_bps


ARMS: Mapping[str, Pairs] = {NO_MODEL: of_every_event, TRADITIONAL: of_traditional}


def void(
    installation: Installation, start_s: float, end_s: float, horizon_s: float, through: Mapping[str, float]
) -> str:
    """Return why the block between two moments, market time in epoch seconds, does not count; empty where it does.

    horizon_s  bars after its end on which its outcomes rest: a correction there counts too
    through    as `outcomes_through`
    """
    decided = installation.store.decided_closes(utc(start_s), utc(end_s))
    whole = {
        symbol: int(
            decision_grid(installation, installation.base_grid(symbol)).expected(_edge(start_s), _edge(end_s))[0]
        )
        for symbol in installation.symbols
    }
    gaps = [
        f"{symbol} was decided at {len(decided.get(symbol, []))} of {closes} closes"
        for symbol, closes in whole.items()
        if len(decided.get(symbol, [])) < closes
    ]
    gone = [f"{symbol} left the universe" for symbol in decided if symbol not in whole]
    corrected = [
        f"{symbol} has corrected bars"
        for symbol in whole
        if any(start_s <= one.known_at < end_s + horizon_s for one in installation.store.corrections(symbol))
    ]
    unknown = [
        f"the outcomes of {symbol} are not known"
        for symbol in whole
        if decided.get(symbol) and through.get(symbol, -inf) < max(decided[symbol]).timestamp()
    ]
    return _joined([*gaps, *gone, *corrected, *unknown])


def _edge(moment_s: float) -> Floats:
    """Return the moment just before another one: closes at the start of a block belong to it, those at its end not."""
    return np.array([moment_s - INSTANT_S])


def _joined(causes: Sequence[str]) -> str:
    """Return causes as one text, the first few by name."""
    more = len(causes) - NAMED
    return "; ".join(causes[:NAMED]) + (f"; {more} more" if more > 0 else "")


def trades_by_arm(installation: Installation, experiment: Experiment) -> list[JsonObject]:
    """Return for each arm that decided since an experiment began its trades and their mean net bps, JSON-ready.

    Descriptive: the arms share account and limits, and in shadow only one of them decides.
    """
    moves = installation.store.transitions(experiment.number)
    until = utc(moves[-1].as_of_s) if moves[-1].state not in RUNNING else None
    net_bps: dict[str, list[float]] = defaultdict(list)
    for record, outcome in installation.store.resolved(experiment.begun, until):
        if record.decision.action != "NO_TRADE":
            net_bps[record.decision.arm].append(outcome.net_bps)
    return [
        {"arm": arm, "trades": len(values), "net_bps": float(np.mean(values))}
        for arm, values in sorted(net_bps.items())
    ]  # fmt: skip
