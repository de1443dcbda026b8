"""Guardrails of an experiment that need many closes or outcomes, and the check of its split.

Those that act at once, inside the service, are in `serving.service.ramp_guard`: their alarm is what comes here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime

import numpy as np

from flows.support import experiments
from flows.support.installation import Installation, now
from pipelines.contracts import ModelAnswer, utc
from pipelines.experiments.assignment import Assignment
from pipelines.experiments.guardrails import GUARDRAIL
from pipelines.experiments.sample_ratio import StageCount, sample_ratio
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.store import RUNNING, Alarm, DecisionRecord, Experiment, Transition
from serving.inference.predictions import NOT_ASKED, faulty
from serving.policy.decide import assigned_in
from serving.state.tiers import SIMPLE

NOVEL = "NOVEL:"  # how the reason of an abstention on an input unlike the training begins
NAMED = 3  # units that a broken split names

Unit = tuple[str, int]  # symbol, block


# ---- harm by blocks -------------------------------------------------------------------------------------------------


def harm_of_blocks(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime
) -> dict[int, dict[str, float]]:
    """Return number of a block → guardrail → mean of what it limits, of decisions in blocks between two moments.

    Of the guarded version less the other, at closes where both were asked. Calibration has the guarded one's
    probability less what happened, of families with one probability and a label of 0 or 1.
    """
    sums: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    labels = {
        (one.symbol, one.as_of): one.label
        for one in installation.store.family_outcomes(experiment.family, since, until)
    }
    for record, guarded, other in _asked(installation, experiment, since, until):
        at = record.decision.as_of
        passed_s = at.timestamp() - experiment.origin_s
        number = int(passed_s // experiment.period_s)
        if passed_s - number * experiment.period_s >= experiment.horizons * experiment.horizon_s:
            continue  # in the gap after the block
        found = sums[number]
        found["abstention"].append(float(guarded.status != "OK") - float(other.status != "OK"))
        found["novelty"].append(_novel(guarded) - _novel(other))
        p, y = guarded.chance[0], labels.get((record.decision.symbol, at))
        if p is not None and isinstance(y, float | int) and y in (0, 1):
            found["calibration"].append(p - y)
    return {
        number: {metric: float(np.mean(values)) for metric, values in found.items()} for number, found in sums.items()
    }


def _asked(
    installation: Installation, experiment: Experiment, since: datetime, until: datetime
) -> Iterator[tuple[DecisionRecord, ModelAnswer, ModelAnswer]]:
    """Yield (record, answer of the guarded version, of the other), of the first decision on each close where both were
    asked and none was a fault."""
    digests = experiment.challenger_digest, experiment.champion_digest
    guarded, other = reversed(digests) if experiment.is_probation else digests
    seen: set[tuple[str, datetime]] = set()
    for record in installation.store.decisions(since=since, until=until):
        close = (record.decision.symbol, record.decision.as_of)
        if close in seen:
            continue
        seen.add(close)
        answers = {one.digest: one for one in record.decision.models.get(experiment.family, {}).values()}
        if guarded in answers and other in answers and all(map(_was_asked, (answers[guarded], answers[other]))):
            yield record, answers[guarded], answers[other]


def _was_asked(answer: ModelAnswer) -> bool:
    """Return whether a model was asked and answered or abstained; a fault has a guardrail of its own."""
    return faulty(answer) is None and not (answer.reason or "").startswith(NOT_ASKED)


def _novel(answer: ModelAnswer) -> float:
    """Return 1 where a model abstained since the input is unlike its training, else 0."""
    return float((answer.reason or "").startswith(NOVEL))


# ---- the split ------------------------------------------------------------------------------------------------------


def broken_split(installation: Installation, experiment: Experiment) -> str | None:
    """Return why the units of a canary or split are not assigned as stated; None while they are.

    A unit counts for the arm that decided it. One that another arm decided than its hash names breaks a split at once;
    where all are as named, the sample-ratio test says whether the hash itself gives the challenger its share.
    """
    assignment = experiment.assignment(installation.store.transitions(experiment.number))
    if not assignment.stages:
        return None
    units = decided_units(installation, experiment.family, assignment)
    if wrong := misassigned(units, assignment):
        named = ", ".join(f"{symbol} in block {block}" for symbol, block in wrong[:NAMED])
        return f"{len(wrong)} of {len(units)} units were not decided by the arm they are assigned to: {named}"
    alpha = installation.params.experiment.sample_ratio_alpha
    count, of_challenger = Counter[float](), Counter[float]()
    for (_, block), arm in units.items():
        count[assignment.weight(block)] += 1
        of_challenger[assignment.weight(block)] += arm == "challenger"
    e_value = sample_ratio([StageCount(weight, n, of_challenger[weight]) for weight, n in count.items()])
    if e_value < 1.0 / alpha:
        return None
    return (
        f"{sum(of_challenger.values())} of {len(units)} units fell to the challenger, "
        f"{sum(weight * n for weight, n in count.items()):.1f} should: e-value {e_value:.3g} reached {1.0 / alpha:.3g}"
    )


def misassigned(units: Mapping[Unit, str], assignment: Assignment) -> list[Unit]:
    """Return the units that another arm decided than the one they are assigned to."""
    return [unit for unit, arm in units.items() if arm != assignment.arm(*unit)]


def decided_units(
    installation: Installation, family: str, assignment: Assignment, last: Transition | None = None
) -> dict[Unit, str]:
    """Return unit → arm that decided it, `both` where it was not one arm, from the first stage on.

    Decisions of the tiers without models belong to no arm.

    last  newest transition of the experiment: of one that has ended only blocks that were whole by then are counted
    """
    is_over = last is not None and last.state not in RUNNING
    until = utc(assignment.start_s(assignment.block(last.as_of_s))) if last is not None and is_over else None
    first_s = assignment.start_s(assignment.stages[0].from_block)
    found: dict[Unit, str] = {}
    for record in installation.store.decisions(since=utc(first_s), until=until):
        decision = record.decision
        if decision.tier > SIMPLE and family == DECISION_FAMILY:
            continue
        stated = assigned_in(decision.lineage).get(family)
        is_ours = stated is not None and stated.experiment == assignment.experiment
        arm: str = stated.arm if stated is not None and is_ours else "champion"
        unit = (decision.symbol, assignment.block(decision.as_of.timestamp()))
        found[unit] = arm if found.get(unit, arm) == arm else "both"
    return found


# ---- what follows ---------------------------------------------------------------------------------------------------


def tripped(installation: Installation, experiment: Experiment) -> str | None:
    """Return which guardrail on blocks, or the split, ends an experiment, and why; None while none does."""
    blocks = installation.store.block_scores(experiment.number)
    for metric, harm in experiments.harms(installation, experiment, blocks).items():
        if harm.reason is not None:
            return f"{metric}: {harm.reason}"
    return broken_split(installation, experiment)


def keep_alarm_of(installation: Installation, experiment: Experiment, why: str) -> None:
    """Raise the alarm of a guardrail that tripped here; the service raises its own."""
    installation.store.raise_alarm(GUARDRAIL, "high", f"experiment {experiment.number}: {why}", now())


def alarmed(installation: Installation) -> list[tuple[Experiment, str]]:
    """Return (experiment that still runs, why) of each open alarm of a guardrail."""
    named = [
        found
        for alarm in installation.store.alarms()
        if alarm.kind == GUARDRAIL and (found := _named(alarm)) is not None
    ]
    if not named:
        return []
    running = {e.number: e for family in FAMILIES if (e := experiments.running(installation, family)) is not None}
    return [(running[number], why) for number, why in named if number in running]


def _named(alarm: Alarm) -> tuple[int, str] | None:
    """Return (experiment, why) as the detail of an alarm of a guardrail has it."""
    match = re.fullmatch(r"experiment (\d+): (.*)", alarm.detail, re.DOTALL)
    return (int(match[1]), match[2]) if match else None
