"""The nouns. What crosses a module boundary is one of these; units and clocks are stated here once.

Time: every stamp is UTC. In frames a column is `datetime64[us, UTC]`; in compiled matrices it is epoch seconds in
float64 (exact to 2**53). A bar is named by its `open_time` and is known only at `open_time + timeframe`.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
JsonObject = dict[str, Any]  # a JSON object whose keys depend on its kind
Arrays = dict[str, npt.NDArray[Any]]  # the arrays of an .npz by name

# ---- bars in compiled code: one row of eight float64, C-contiguous; NaN = not recorded --------------------------
BAR_FIELDS = ("open_time", "open", "high", "low", "close", "volume", "trades", "taker_buy_volume")
OPEN_TIME = 0  # epoch seconds UTC, start of the bar
OPEN = 1  # quote currency
HIGH = 2
LOW = 3
CLOSE = 4
VOLUME = 5  # base asset; NaN where the source has none (forex)
TRADES = 6  # count; NaN where the source has none
TAKER_BUY = 7  # base asset bought by takers; NaN where the source has none
BAR_WIDTH = 8

# ---- book in compiled code: (2 sides, levels, 3) float64; side 0 bid, 1 ask; price, size, order count -----------
BOOK_LEVELS = 5  # levels a side that are kept of a recorded book
NO_BOOK: Floats = np.empty((2, 0, 3), dtype=np.float64)

# ---- tape in compiled code: what the events inside a bar were, in numbers; it comes with each recorded book --------
# `order_flow` … are the names; True = added up over the books of a bar, False = as the newest of them says.
# Sizes and flows in base asset; NaN = not recorded.
TAPE: dict[str, bool] = {
    "order_flow": True,  # order-flow imbalance (Cont, Kukanov and Stoikov 2014)
    "order_flow_fast": False,  # the same over the last seconds before the book
    # S7, footprint and depth
    "stacked_buying": True,  # count: runs of price buckets, one above the other, where buyers outdid sellers
    "stacked_selling": True,
    "stacking_bid": True,  # added less pulled (trades apart) near the best bid
    "stacking_ask": True,
    # S8, arrivals of trades
    "hawkes_branching": False,  # trades that one trade causes, by maximum likelihood
    "hawkes_excess": False,  # intensity over its base rate, less one
    "hawkes_side": False,  # -1 sellers … 1 buyers: whose trades the excitement is made of
    # S9, heatmap of 100 levels x 50 snapshots
    "heat_imbalance": False,  # (bid - ask) / both
    "heat_concentration": False,  # Herfindahl-Hirschman index of the levels, 1/levels … 1
    "heat_liquidity": False,  # score, 0 … 1
    "wall_bid": False,  # quote currency; the persistent wall nearest below, NaN = none
    "wall_ask": False,  # … above
    "wall_bid_size": False,  # in medians of the levels
    "wall_ask_size": False,
    # S10, smart money
    "large_buy": True,  # bought in trades beyond the trailing 99 % quantile of sizes
    "large_sell": True,
    "iceberg_bid": True,  # filled at levels that were refilled after fills
    "iceberg_ask": True,
    "spoof_bid": True,  # count: large orders that were withdrawn before they could trade
    "spoof_ask": True,
    "smart_price": False,  # quote currency; mean price, by size, of large trades and iceberg fills
    # S11, institutional flow
    "cvd_large": True,  # buys less sells, trades above the trailing median notional
    "cvd_small": True,
    "vpin": False,  # 0 … 1, volume-synchronised probability of informed trading
}
TAPE_FIELDS = tuple(TAPE)
TAPE_INDEX = {name: i for i, name in enumerate(TAPE_FIELDS)}
TAPE_WIDTH = len(TAPE_FIELDS)

# ---- context in compiled code: one row of float64 beside each decision bar; NaN = not known at its close ---------
CONTEXT_FIELDS = (
    *TAPE_FIELDS[:2],
    "funding_rate",  # fraction a funding period
    "fear_greed",  # 0 (fear) to 100 (greed)
    "open_interest",  # base asset
    "reference_close",  # quote currency; close of the reference symbol's bar (BTC beside another market)
    *TAPE_FIELDS[2:],
)
CONTEXT_INDEX = {name: i for i, name in enumerate(CONTEXT_FIELDS)}
CONTEXT_WIDTH = len(CONTEXT_FIELDS)
NO_CONTEXT: Floats = np.full(CONTEXT_WIDTH, np.nan)

TIMEFRAME_SECONDS = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "4h": 14400, "1d": 86400}

Arm = Literal["champion", "challenger"]

CATEGORIES = ("cmt", "ict", "order_flow", "fpdom", "sentiment")
REGIMES = ("TRENDING", "RANGING", "VOLATILE", "QUIET")


def utc(seconds: float) -> datetime:
    """Epoch seconds → aware datetime."""
    return datetime.fromtimestamp(float(seconds), tz=UTC)


def tape_of(n: int, **columns: Any) -> Floats:
    """(n, TAPE_WIDTH) tape of which the columns named here are given and no other is recorded."""
    tape = np.full((n, TAPE_WIDTH), np.nan)
    for name, values in columns.items():
        tape[:, TAPE_INDEX[name]] = values
    return tape


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with what it stands on (law L9): value, 95 % interval, number of rows, the cost assumption if any."""

    value: float
    low: float
    high: float
    n: int
    cost_bps: float | None = None


@dataclass(frozen=True, slots=True)
class Books:
    """n recorded order books in the order they could be known.

    known            (n,) epoch seconds at which the book could be known; ascending
    levels           (n, 2, BOOK_LEVELS, 3) bid and ask; price, size (base asset), orders (NaN = not recorded); best
                     level first, NaN where the side has fewer levels
    tape             (n, TAPE_WIDTH) in TAPE_FIELDS order: what happened since the book before, or as of this one; units
                     as TAPE says, NaN = not recorded
    """

    known: Floats
    levels: Floats
    tape: Floats

    @property
    def order_flow(self) -> Floats:
        """(n,) base asset; order-flow imbalance since the book before; a view of the tape."""
        return self.tape[:, TAPE_INDEX["order_flow"]]

    @property
    def order_flow_fast(self) -> Floats:
        """(n,) base asset; the same over the last seconds before this book; a view of the tape."""
        return self.tape[:, TAPE_INDEX["order_flow_fast"]]


@dataclass(frozen=True, slots=True)
class Trades:
    """n trades in time order: epoch seconds, price in quote currency, size in base asset, aggressor +1 buy, -1 sell."""

    time: Floats
    price: Floats
    size: Floats
    side: Floats


@dataclass(frozen=True, slots=True)
class ContextFeed:
    """n values of context in the order they could be known: `known` epoch seconds (ascending), `field` an index into
    CONTEXT_FIELDS (int64), `value` in that field's unit. A later value of a field replaces the one before."""

    known: Floats
    field: Ints
    value: Floats


RETAINED_BARS = 256  # decision bars a live service and a warm start keep: the longest window of a model fits


@dataclass(frozen=True, slots=True)
class History:
    """m closed decision bars in time order with everything known at their closes: what any model may read.

    bars (m, 8) · features (m, kf) · signals (m, ks) · levels (m, 2, levels, 3) books · context (m, CONTEXT_WIDTH)
    """

    bars: Floats
    features: Floats
    signals: Floats
    levels: Floats
    context: Floats

    def __len__(self) -> int:
        return len(self.bars)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model says of a batch of n rows. An abstention has p = NaN, a status and a reason code (law L1).

    p        (n,) calibrated probability of a model with one class, (n, classes) of one with several; in [0, 1]; NaN
             where status is not OK
    p_low    as p: lower 95 % bound (what sizing may rely on); NaN where status is not OK or the model gives none
    status   n of "OK" | "ABSTAIN"
    reason   n of None | reason code such as "MISSING_FEATURE:volume_ratio", "NOVEL:17.2>12.9"
    novelty  (n,) distance from the training data in the model's own unit; NaN if it could not be computed
    digest   sha256 of the bundle manifest that answered
    label    n of None | what the model says in one word (a regime, the patterns it is sure of); None where it has none
    members  voter → its own p, for models that are made of several; NaN where that voter could not speak
    """

    p: Floats
    p_low: Floats
    status: list[str]
    reason: list[str | None]
    novelty: Floats
    digest: str
    label: list[str | None] | None = None
    members: dict[str, Floats] | None = None


class Model(Protocol):
    """What serving needs from any family: a verified bundle that answers batches."""

    @property
    def family(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def steps(self) -> int:
        """Bars a row looks back on, the bar decided on included."""
        ...

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def golden(self) -> dict[str, Any]:
        """rows (g, …), p, status: what check_golden repeats."""
        ...

    @property
    def schema(self) -> dict[str, Any]:
        """What it was trained on: kind, symbol, decision_timeframe, trained_through, dropped, terms."""
        ...

    def predict(self, rows: Floats) -> Predictions:
        """rows (n, len(columns)) where `steps` is 1, else (n, steps, len(columns)) oldest first; float64 in the order
        of `columns`; NaN = missing."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verdict. `passed` None means it could not be computed, and `detail` says why."""

    name: str
    passed: bool | None
    value: float | None
    low: float | None
    high: float | None
    threshold: str
    n: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer on one candidate: passed only if every required check passed."""

    family: str
    passed: bool
    checks: tuple[Check, ...]
    reasons: tuple[str, ...]  # names of the checks that failed or could not be computed


@dataclass(frozen=True, slots=True)
class Decision:
    """U6: everything a decision says; stored whole before the answer leaves.

    Prices in quote currency, sizes as a fraction of equity, edges in basis points of the entry price.
    """

    id: str
    symbol: str
    as_of: datetime  # event_time: close of the bar decided on
    known_at: datetime
    ingested_at: datetime
    action: Literal["BUY", "SELL", "NO_TRADE"]
    direction: int  # -1, 0, 1: what the vote said, also when the action is NO_TRADE
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
    models: dict[str, Any] = field(default_factory=dict)  # family → arm → {version, digest, p, status, reason, …}
    lineage: dict[str, str] = field(default_factory=dict)  # data_hash, git_commit, catalogue_hash, warm_start, policy
    account: dict[str, float | None] = field(
        default_factory=dict
    )  # what risk saw of it: the fields of policy.ExposureSnapshot
    breakers: tuple[str, ...] = ()  # latched at that moment
    tier_reason: str = ""  # TIER_<n>: why; empty in decisions made before it was recorded
    tier_multiplier: float = 1.0  # what the tier leaves of a position's size
    trail: dict[str, str] = field(default_factory=dict)  # risk.codes.LAYERS → passed, refused: …, not reached: …
    said: dict[str, float] = field(default_factory=dict)  # category → side × confidence, in [-1, 1]; 0 = silent
    validation: dict[str, float | None] = field(default_factory=dict)  # U4: `of` all, and each layer that speaks
    stage: str = ""  # of the drawdown, risk.limits.STAGES
    capped_by: str | None = None  # the cap that made the size smaller, risk.sizing.CAPS
    learned: dict[str, float] = field(default_factory=dict)  # weights as learned from outcomes so far


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to a decision's event, by the same definition the labels use."""

    decision_id: str
    resolved_at: datetime
    label: int  # 1 target first, 0 stop first or time ran out
    barrier: Literal["target", "stop", "time"]
    gross_bps: float
    net_bps: float
    cost_bps: float
