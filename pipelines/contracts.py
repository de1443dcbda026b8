"""Define the records that cross module boundaries, with their units and clocks.

Time: every stamp is UTC. In frames a column is `datetime64[us, UTC]`; in compiled matrices it is epoch seconds in
float64 (exact to 2**53). A bar is named by its `open_time` and is known only at `open_time + timeframe`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from math import isfinite
from operator import attrgetter
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.context_layout import TAPE_INDEX

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
JsonObject = dict[str, Any]  # a JSON object whose keys depend on its kind
Arrays = dict[str, npt.NDArray[Any]]  # the arrays of an .npz by name

DAY_S = 86_400.0  # seconds

# ---- bars in compiled code: one row of nine float64, C-contiguous; NaN = not recorded ---------------------------
BAR_FIELDS = ("open_time", "open", "high", "low", "close", "volume", "trades", "taker_buy_volume", "half_spread")
OPEN_TIME = 0  # epoch seconds UTC, start of the bar
OPEN = 1  # quote currency
HIGH = 2
LOW = 3
CLOSE = 4
VOLUME = 5  # base asset; NaN where the source has none (forex)
TRADES = 6  # count; NaN where the source has none
TAKER_BUY = 7  # base asset bought by takers; NaN where the source has none
HALF_SPREAD = 8  # quote currency, (ask - bid) / 2 at the close; NaN where no quotes were recorded
BAR_WIDTH = len(BAR_FIELDS)

# ---- book in compiled code: (2 sides, levels, 3) float64; side 0 bid, 1 ask; price, size, order count -----------
BOOK_LEVELS = 5  # levels stored on each side of a recorded book
NO_BOOK: Floats = np.empty((2, 0, 3), dtype=np.float64)


Arm = Literal["champion", "challenger"]

CATEGORIES = ("cmt", "ict", "order_flow", "fpdom", "sentiment")
SCORE_NAMES = (*CATEGORIES, "traditional")  # what a bar is scored by; only CATEGORIES have weights outside tier 3
REGIMES = ("TRENDING", "RANGING", "VOLATILE", "QUIET")


def utc(seconds: float) -> datetime:
    """Return epoch seconds as an aware datetime."""
    return datetime.fromtimestamp(float(seconds), tz=UTC)


def finite_or_none(value: float) -> float | None:
    """Return the number as JSON can hold it: None for NaN and infinities."""
    return float(value) if isfinite(value) else None


def json_ready(value: Any) -> Any:
    """Return plain data with every float that is not finite replaced by None; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Point:
    """Hold one point of a chart: where it is on the axis, its value, and the moment it is of, in seconds since 1970."""

    chart: str
    step: int
    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold a figure with its evidence (law L9): value, 95 % interval, number of rows, assumed cost if any."""

    value: float
    low: float
    high: float
    n: int
    cost_bps: float | None = None


@dataclass(frozen=True, slots=True)
class Books:
    """Hold n recorded order books in the order in which they became known.

    known            (n,) epoch seconds at which the book became known; ascending
    levels           (n, 2, BOOK_LEVELS, 3) bid and ask; price, size (base asset), orders (NaN = not recorded); best
                     level first, NaN where the side has fewer levels
    tape             (n, TAPE_WIDTH) in TAPE_FIELDS order: events since the previous book, or as of this one; units as
                     in TAPE, NaN = not recorded
    """

    known: Floats
    levels: Floats
    tape: Floats

    @property
    def order_flow(self) -> Floats:
        """Return (n,) order-flow imbalance since the previous book, base asset; a view of the tape."""
        return self.tape[:, TAPE_INDEX["order_flow"]]

    @property
    def order_flow_fast(self) -> Floats:
        """Return (n,) order-flow imbalance of the last seconds before each book, base asset; a view of the tape."""
        return self.tape[:, TAPE_INDEX["order_flow_fast"]]


@dataclass(frozen=True, slots=True)
class Trades:
    """Hold n trades in time order: epoch seconds, price (quote), size (base asset), aggressor +1 buy, -1 sell."""

    time: Floats
    price: Floats
    size: Floats
    side: Floats


@dataclass(frozen=True, slots=True)
class ContextFeed:
    """Hold n values of context in the order in which they became known.

    known  (n,) epoch seconds, ascending
    field  (n,) int64 index into CONTEXT_FIELDS
    value  (n,) in the unit of that field; a later value of a field replaces the earlier one
    """

    known: Floats
    field: Ints
    value: Floats


RETAINED_BARS = 256  # decision bars in a live service and in a warm start; the longest window of a model fits


@dataclass(frozen=True, slots=True)
class History:
    """Hold m closed decision bars in time order with everything known at their closes: the inputs of any model.

    bars (m, 9) · features (m, kf) · signals (m, ks) · levels (m, 2, levels, 3) books · context (m, CONTEXT_WIDTH)
    """

    bars: Floats
    features: Floats
    signals: Floats
    levels: Floats
    context: Floats

    def __len__(self) -> int:
        """Return m, the number of bars."""
        return len(self.bars)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Hold the predictions of one model for a batch of n rows; an abstention has p = NaN and a reason (law L1).

    p        (n,) calibrated probability of a model with one class, (n, classes) of one with several; in [0, 1]; NaN
             where status is not OK
    p_low    as p: lower 95 % bound, used for sizing; NaN where status is not OK or the model gives none
    status   n of "OK" | "ABSTAIN"
    reason   n of None | reason code such as "MISSING_FEATURE:volume_ratio", "NOVEL:17.2>12.9"
    novelty  (n,) distance from the training data in the model's own unit; NaN if it could not be computed
    digest   sha256 of the manifest of the bundle that predicted
    label    n of None | the prediction as one word (a regime, the patterns above their threshold)
    members  member → its own p, for models made of several; NaN where that member abstained
    device   where its networks ran: "cpu", or card and precision as in "cuda:0 fp32"
    fallback why this process predicted and not the model service; None where that is as configured
    """

    p: Floats
    p_low: Floats
    status: list[str]
    reason: list[str | None]
    novelty: Floats
    digest: str
    label: list[str | None] | None = None
    members: dict[str, Floats] | None = None
    device: str = "cpu"
    fallback: str | None = None


class Model(Protocol):
    """Predict batches of rows from a verified bundle: what serving needs from any model family."""

    @property
    def family(self) -> str:
        """Return the model family, one of families.FAMILIES."""
        ...

    @property
    def version(self) -> str:
        """Return the registry version; empty where the bundle was loaded without one."""
        ...

    @property
    def digest(self) -> str:
        """Return the sha256 of the bundle's manifest."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the input columns in the order in which `predict` expects them."""
        ...

    @property
    def steps(self) -> int:
        """Return the number of bars in a row, the bar decided on included."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes that p has one column for."""
        ...

    @property
    def golden(self) -> Mapping[str, Any]:
        """Return the golden rows that check_golden repeats: rows (g, …), p, status."""
        ...

    @property
    def schema(self) -> Mapping[str, Any]:
        """Return the training facts: kind, symbol, decision_timeframe, trained_through, dropped, loss_params."""
        ...

    def predict(self, rows: Floats) -> Predictions:
        """Return one prediction for each row.

        rows  (n, len(columns)) where `steps` is 1, else (n, steps, len(columns)) oldest first; float64 in the order of
              `columns`; NaN = missing
        """
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """Hold one line of a verdict; `passed` None means it could not be computed, for the reason in `detail`.

    detectable  of a check of skill, in the unit of its value: the smallest true value that so many rows show to be
                above zero in 95 of 100 cases; None where the check requires something else
    """

    name: str
    passed: bool | None
    value: float | None
    low: float | None
    high: float | None
    threshold: str
    n: int
    detail: str = ""
    detectable: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Hold the gate's verdict on one candidate: passed only if every required check passed."""

    family: str
    passed: bool
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]  # names of the checks that failed or could not be computed


Probabilities = float | dict[str, float | None] | None  # one class; class → p; None = no number


@dataclass(frozen=True, slots=True)
class EnsembleVote:
    """Hold the vote of the directional ensemble (M5) over the members of one model.

    p        in [0, 1]; None where no member gave a number
    phase    regime whose weights were used; None = unknown
    weights  member → weight used, summing to 1
    missing  members that gave no number
    """

    p: float | None
    phase: str | None
    weights: dict[str, float]
    missing: tuple[str, ...]

    def to_dict(self) -> JsonObject:
        """Return the vote as plain JSON."""
        return {"p": self.p, "phase": self.phase, "weights": self.weights, "missing": list(self.missing)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "EnsembleVote":
        """Return the vote that `to_dict` wrote."""
        return cls(record["p"], record["phase"], dict(record["weights"]), tuple(record["missing"]))


@dataclass(slots=True)  # nothing changes one; frozen ones, a thousand of which are made a close, take thrice as long
class ModelAnswer:
    """Hold the prediction of one arm of one family for one decision: numbers, or None and the reason for it.

    verdict    of the gate on this version: "passed", "refused" or empty
    role       "active" of the champion, "shadow" of the challenger
    event      signal that raised the event it predicts; None for families that read the market itself
    direction  of that event: -1, 1, or 0 without one
    p, p_low   as in Predictions, of the one row; p_low is the lower 95 % bound
    novelty    distance from the training data, in the model's own unit
    members    member → its p, for models made of several
    ensemble   vote over `members`, where the bundle registers weights
    device     as in Predictions; releases before 0.14 knew the CPU alone
    fallback   as in Predictions
    """

    family: str
    version: str = ""
    digest: str = ""
    verdict: str = ""
    role: str = ""
    event: str | None = None
    direction: int = 0
    p: Probabilities = None
    p_low: Probabilities = None
    label: str | None = None
    status: str = "ABSTAIN"
    reason: str | None = None
    novelty: float | None = None
    members: dict[str, Probabilities] | None = None
    ensemble: EnsembleVote | None = None
    device: str = "cpu"
    fallback: str | None = None

    @property
    def chance(self) -> tuple[float | None, float | None]:
        """Return (p, p_low) of a model with one class; None where there is no number."""
        return _one_class(self.p), _one_class(self.p_low)

    @property
    def likeliest(self) -> float:
        """Return p of a model with one class, of several the highest; NaN where there is no number."""
        each = self.p.values() if isinstance(self.p, dict) else (self.p,)
        return max((float(p) for p in each if p is not None), default=float("nan"))

    def with_vote(self, ensemble: EnsembleVote) -> "ModelAnswer":
        """Return this answer with the vote over its members: what `replace` makes, in a third of its time."""
        return ModelAnswer(
            self.family, self.version, self.digest, self.verdict, self.role, self.event, self.direction, self.p,
            self.p_low, self.label, self.status, self.reason, self.novelty, self.members, ensemble, self.device,
            self.fallback,
        )  # fmt: skip

    def to_dict(self) -> JsonObject:
        """Return the answer as plain JSON; `members`, `ensemble` and `fallback` only where there are any."""
        record = dict(zip(self.__slots__, _OF_ANSWER(self), strict=True))
        if self.members is None:
            del record["members"]
        if self.fallback is None:
            del record["fallback"]
        if self.ensemble is None:
            del record["ensemble"]
        else:
            record["ensemble"] = self.ensemble.to_dict()
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], family: str = "") -> "ModelAnswer":
        """Return the answer that `to_dict` wrote; fields that an earlier release did not store have their defaults."""
        known = {part.name: record[part.name] for part in fields(cls) if part.name in record}
        if (vote := known.get("ensemble")) is not None:
            known["ensemble"] = EnsembleVote.from_dict(vote)
        return cls(**{"family": family, **known})


_OF_ANSWER = attrgetter(*ModelAnswer.__slots__)  # all its values at once
ModelAnswers = dict[str, dict[str, ModelAnswer]]  # family → arm → answer


def _one_class(p: Probabilities) -> float | None:
    """Return p of a model with one class; None without a number, and of a model with several classes."""
    return None if p is None or isinstance(p, dict) else float(p)


def _answers(models: Mapping[str, Any]) -> ModelAnswers:
    """Return the stored model answers by family and arm; release 0.1.0 stored the arms of its one family alone."""
    if "champion" in models or "challenger" in models:
        models = {"validator": models}
    return {
        family: {arm: ModelAnswer.from_dict(record, family) for arm, record in arms.items()}
        for family, arms in models.items()
    }


@dataclass(frozen=True, slots=True)
class ThresholdCheck:
    """Hold one adaptive threshold (S17) of an event: its value on the event's side and what was wanted.

    value    in the threshold's own unit; None = not known, which reaches nothing
    minimum  the least value that reaches it, or the phase wanted
    refuses  whether a value that does not reach it refuses the trade; otherwise it is recorded only
    """

    value: float | str | None
    minimum: float | str
    reached: bool
    refuses: bool

    def to_dict(self) -> JsonObject:
        """Return the check as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


_TIMES = ("as_of", "known_at", "ingested_at", "expiry")
_TUPLES = ("take_profits", "reasons", "breakers")


@dataclass(frozen=True, slots=True)
class Decision:
    """Hold one decision with everything it rests on (U6); stored whole before the answer leaves.

    Prices in quote currency, sizes as a fraction of equity, edges in basis points of the entry price.
    """

    id: str
    symbol: str
    as_of: datetime  # event_time: close of the bar decided on
    known_at: datetime
    ingested_at: datetime
    action: Literal["BUY", "SELL", "NO_TRADE"]
    direction: int  # -1, 0, 1: sign of the vote, also when the action is NO_TRADE
    confidence: float | None
    entry: float | None
    stop: float | None
    take_profits: tuple[float, ...]
    size: float
    expiry: datetime | None
    edge_bps: float | None  # expected, after cost
    p: float | None
    regime: str | None
    tier: int
    arm: str
    event: str | None  # name of the signal that raised the event, None if there was none
    weights: dict[str, float] = field(default_factory=dict)
    contributions: dict[str, float] = field(default_factory=dict)
    coverage: float = 0.0
    reasons: tuple[str, ...] = ()
    generation: int = 0
    models: ModelAnswers = field(default_factory=dict)  # family → arm → answer
    lineage: dict[str, str] = field(default_factory=dict)  # data_hash, git_commit, catalogue_hash, policy, cpu, …
    account: dict[str, float | None] = field(default_factory=dict)  # fields of decision_row.ExposureSnapshot
    breakers: tuple[str, ...] = ()  # tripped at that moment
    tier_reason: str = ""  # TIER_<n>: why; empty in decisions made before it was recorded
    tier_multiplier: float = 1.0  # factor of the tier on a position's size
    trail: dict[str, str] = field(default_factory=dict)  # risk.codes.LAYERS → passed, refused: …, not reached: …
    category_scores: dict[str, float] = field(default_factory=dict)  # direction × confidence, -1 … 1; 0 = neutral
    validation: dict[str, float | None] = field(default_factory=dict)  # U4: `combined`, and each layer with a value
    stage: str = ""  # of the drawdown, risk.limits.STAGES
    capped_by: str | None = None  # the cap that reduced the size, risk.sizing.CAPS
    learned: dict[str, float] = field(default_factory=dict)  # weights learned from outcomes so far
    thresholds: dict[str, ThresholdCheck] = field(default_factory=dict)  # S17, of the trail; only with an event
    market: dict[str, float | None] = field(default_factory=dict)  # MARKET_COLUMNS; empty up to release 0.10

    def to_dict(self) -> JsonObject:
        """Return the decision as plain JSON: what is stored and what a client receives; times in ISO 8601 with zone."""
        record = dict(zip(self.__slots__, _OF_DECISION(self), strict=True))
        for name in _TIMES:
            record[name] = record[name] and record[name].isoformat()
        for name in _TUPLES:
            record[name] = list(record[name])
        record["models"] = {
            family: {arm: answer.to_dict() for arm, answer in arms.items()} for family, arms in self.models.items()
        }
        record["thresholds"] = {name: check.to_dict() for name, check in self.thresholds.items()}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Decision":
        """Return the decision that `to_dict` wrote; a field that was not stored has its default."""
        times = {name: record[name] and datetime.fromisoformat(record[name]) for name in _TIMES}
        tuples = {name: tuple(record.get(name, ())) for name in _TUPLES}
        checks = {name: ThresholdCheck(**check) for name, check in record.get("thresholds", {}).items()}
        models = _answers(record.get("models", {}))
        return cls(**{**record, **times, **tuples, "models": models, "thresholds": checks})


_OF_DECISION = attrgetter(*Decision.__slots__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Hold the outcome of a decision's event, defined as the labels define it."""

    decision_id: str
    resolved_at: datetime
    label: int  # 1 target first, 0 stop first or time ran out
    barrier: Literal["target", "stop", "time"]
    gross_bps: float
    net_bps: float
    cost_bps: float
