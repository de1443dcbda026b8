"""Reasons to retrain a family.

The queue rejects duplicates and enforces a cool-down. Drift requests a retrain, never a promotion. A condition that
lasts is answered by one retrain: after that the schedule brings the next, not the same condition again.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipelines.errors import BadTimes
from pipelines.monitoring.drift import DriftResult
from pipelines.monitoring.loss import LossDrift
from pipelines.params import RetrainParams
from pipelines.store import RetrainRequest

DAY = timedelta(days=1)
AGE_INTERVALS = 2  # age of training data in retrain intervals: retrains ran, but on data that was not updated
KINDS = ("schedule", "age", "drift", "missing", "loss", "predates")  # of reasons that request a retrain


@dataclass(frozen=True, slots=True)
class TriggerReason:
    """Hold one reason: `detail` for operators, `numbers` it was decided by (days, scores, shares).

    market  whose inputs it is about; None where it is about the family
    """

    kind: Literal["schedule", "age", "drift", "missing", "loss", "predates", "overdue"]
    detail: str
    numbers: dict[str, float]
    market: str | None = None

    def __str__(self) -> str:
        """Return the reason in one line: `kind: detail`, with the market it is about."""
        return f"{self.kind}: {f'{self.market}: ' if self.market else ''}{self.detail}"


def last_finished(requests: list[RetrainRequest]) -> datetime | None:
    """Return when the newest retrain finished, whatever the gate made of its challenger; None if none did.

    A retrain that failed trained nothing, so it does not count.
    """
    return max((r.finished_at for r in requests if r.state == "done" and r.finished_at), default=None)


def seen_until(requests: list[RetrainRequest]) -> datetime | None:
    """Return up to when conditions are answered: when the newest finished retrain was requested; None if none finished.

    Its data end there, or a little later. What was first seen while it ran was not in them, however late it ended and
    whatever was promoted since.
    """
    return max((r.at for r in requests if r.state == "done"), default=None)


def retrain_reasons(
    now: datetime,
    last_retrain: datetime | None,
    data_until: datetime | None,
    drift: DriftResult | None,
    loss: LossDrift | None,
    params: RetrainParams,
    predates: str | None = None,
) -> list[TriggerReason]:
    """Return every reason to retrain that holds at `now`; an empty list if there is none.

    last_retrain  when training last finished, promoted or refused; None: never
    data_until    newest bar the serving model was trained on; None: no model serves
    drift, loss   None: not measured; a result whose alarm is None is no reason
    predates      why the serving model cannot be watched; None: it can
    Raises        BadTimes on a naive time or one after `now`
    """
    reasons = []
    since = _days(now, last_retrain, "last_retrain")
    if since is None:
        reasons.append(TriggerReason("schedule", "never trained", {}))
    elif since >= params.interval_days:
        numbers = {"days": since, "interval_days": float(params.interval_days)}
        detail = f"{since:.1f} days since the last retrain, interval {params.interval_days}"
        reasons.append(TriggerReason("schedule", detail, numbers))
    age = _days(now, data_until, "data_until")
    limit = AGE_INTERVALS * params.interval_days
    if age is not None and age >= limit:
        detail = f"the model's newest training bar is {age:.1f} days old, limit {limit}"
        reasons.append(TriggerReason("age", detail, {"days": age, "limit_days": float(limit)}))
    if drift is not None:
        reasons += drift_reasons(drift)
    if loss is not None and loss.alarm:
        numbers = {"gain": loss.gain.value, "expected": loss.expected, "p": loss.p, "blocks": float(loss.gain.n)}
        reasons.append(TriggerReason("loss", loss.reason, numbers))
    if predates is not None:
        reasons.append(TriggerReason("predates", predates, {}))
    return reasons


def drift_reasons(drift: DriftResult, market: str | None = None) -> list[TriggerReason]:
    """Return the reasons that the inputs of one market give: values that drift, and a share missing that moved."""
    reasons = []
    if drift.alarm:
        first = next(block for block in drift.blocks if block.start == drift.onset)
        numbers = {
            "score": first.score,
            "threshold": first.threshold,
            "blocks": float(len(drift.blocks)),
            "blocks_in_alarm": float(sum(block.alarm for block in drift.blocks)),
        }
        reasons.append(TriggerReason("drift", drift.reason, numbers, market))
    if drift.missing_alarm:
        first = next(block for block in drift.blocks if block.start == drift.missing_onset)
        numbers = {"score": first.missing_score, "threshold": first.missing_threshold}
        reasons.append(TriggerReason("missing", drift.missing_reason, numbers, market))
    return reasons


def is_due(reason: TriggerReason, raised_at: datetime, answered_until: datetime | None) -> bool:
    """Return whether a reason requests a retrain: the schedule does, and a condition that no retrain has answered yet.

    raised_at       when the condition was first seen
    answered_until  as of `seen_until`: a retrain that was requested later has its data
    """
    return reason.kind == "schedule" or answered_until is None or raised_at > answered_until


def overdue(
    now: datetime, last_retrain: datetime | None, started: datetime, intervals: float, params: RetrainParams
) -> TriggerReason | None:
    """Return an alarm if nothing was retrained for `intervals` times the interval: the queue does not work.

    started  when the platform started, used while nothing was ever trained
    Raises   BadTimes as `retrain_reasons`
    """
    waited = _days(now, started if last_retrain is None else last_retrain, "last_retrain or started")
    limit = intervals * params.interval_days
    if waited is None or waited < limit:
        return None
    detail = (
        f"no retrain for {waited:.1f} days, limit {limit:g} ({intervals:g} x {params.interval_days}). "
        "Check the retrain queue and its workers."
    )
    return TriggerReason("overdue", detail, {"days": waited, "limit_days": limit})


def _days(now: datetime, then: datetime | None, name: str) -> float | None:
    """Return the days from `then` to `now`; None for None. Raises BadTimes."""
    if then is None:
        return None
    if now.tzinfo is None or then.tzinfo is None:
        raise BadTimes(f"now={now} and {name}={then} must both have a timezone; pass UTC")
    if then > now:
        raise BadTimes(f"{name} {then:%F %T} lies after now {now:%F %T}: a clock is wrong or the arguments are swapped")
    return (now - then) / DAY
