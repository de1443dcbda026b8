"""Check a data file before any server is started: what ingest would report, and what could be trained from it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd

from flows.support.market_access import market_records
from pipelines.contracts import (
    CLOSE,
    CONTEXT_FIELDS,
    HALF_SPREAD,
    OPEN_TIME,
    TAKER_BUY,
    TAPE_FIELDS,
    TIMEFRAME_SECONDS,
    VOLUME,
    Floats,
)
from pipelines.costs import costs_of, venue_of
from pipelines.data.quality import QualityReport, assess, cross_source_divergence
from pipelines.data.schemas import to_frame, to_matrix
from pipelines.data.sources import UNNAMED, Records, make_source, normalise_symbol
from pipelines.data.timeframes import infer_timeframe, resample
from pipelines.families import FAMILIES
from pipelines.features.catalog import FEATURES, absent_columns
from pipelines.models import pattern_view
from pipelines.models.views import VIEWS
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS

ROWS_ARE_EVENTS = ("validator", "pattern")  # their number is known only after signals were folded
NAMED_GAPS = 5


class Difference(TypedDict):
    """Report how a second source of the same market differs.

    timeframe   of the comparison: the coarser of the two
    shared      bars in both; median_bps how far the checked file usually lies above the other, basis points of price
    divergent   shared bars whose closes differ otherwise than usual; largest: open (ISO 8601) → basis points
    """

    file: str
    timeframe: str
    shared: int
    median_bps: float
    divergent: int
    largest: dict[str, float]


Gap = TypedDict("Gap", {"from": str, "until": str, "bars": int})  # ISO 8601 opens of a gap, and its missing bars


@dataclass(frozen=True, slots=True)
class Training:
    """Describe what a family would be trained on.

    reads, absent  number of its columns that are there; each column that is not → the input it needs
    scored         upper bound of the rows the gate scores: decision bars after the warm-up and after the first fit
    explanation    whether that can be enough, for people
    """

    possible: bool
    reads: int
    absent: dict[str, str]
    scored: int
    explanation: str


@dataclass(frozen=True, slots=True)
class Checked:
    """Describe a data file, JSON-ready.

    parts         factors of the score, each 1.0 where nothing is wrong
    costs         the row of `costs` its trades would pay
    spread_bps    mean spread of the bars that have one, basis points of the close; None where no bar has
    spread_share  share of the bars that have one; trades on the others are executed at mid and pay the spread of costs
    history_bars  decision bars before the last days, which are set aside for the live service
    against       how a second source differs, None without one; it lowers no score, as it does not show which is wrong
    """

    file: str
    symbol: str | None
    timeframe: str
    decision_timeframe: str
    rows: int
    first: str | None
    last: str | None
    score: float
    floor: float
    parts: dict[str, float]
    quarantined: dict[str, int]
    flagged: dict[str, int]
    gaps: list[Gap]
    weekly_sessions: bool
    recorded: list[str]
    costs: str
    spread_bps: float | None
    spread_share: float
    history_bars: int
    families: dict[str, Training]
    against: Difference | None = None

    @property
    def passed(self) -> bool:
        """Return True if a run would take the file."""
        return self.score >= self.floor


def check(
    path: Path, symbol: str | None, context: list[Path], params: Params, at: datetime, against: Path | None = None,
    venue: str | None = None, market: str | None = None,
) -> Checked:  # fmt: skip
    """Read the file as ingest does and assess it as of `at` (aware).

    against  a file of the same market from elsewhere, to compare with
    venue, market  where it was recorded, None = not stated
    Raises   what the files source raises; NotEnoughData where the two files share fewer than ten bars
    """
    name = normalise_symbol(symbol or UNNAMED)
    source = make_source("files", path=path, venue=venue, market=market)
    frame = source.fetch(name, as_of=at, ingested_at=at)
    timeframe = infer_timeframe(to_matrix(frame)[:, OPEN_TIME])
    report = assess(frame, timeframe, at, rules=params.data.quality)
    bars = to_matrix(report.clean)
    decision_tf = params.data.decision_timeframe_for(timeframe)
    given = recorded_inputs(bars, market_records(source, name, [str(file) for file in context], at))
    live_s = timedelta(days=params.data.live_days).total_seconds()
    history = bars[bars[:, OPEN_TIME] < bars[-1, OPEN_TIME] - live_s, OPEN_TIME] if len(bars) else bars[:, OPEN_TIME]
    n = len(np.unique(history // TIMEFRAME_SECONDS[decision_tf]))
    quoted = np.isfinite(bars[:, HALF_SPREAD])
    spread = bars[quoted, HALF_SPREAD]
    stamps = report.clean["open_time"]
    return Checked(
        file=str(path),
        symbol=name if symbol else None,
        timeframe=timeframe,
        decision_timeframe=decision_tf,
        rows=report.rows,
        first=stamps.iloc[0].isoformat() if len(stamps) else None,
        last=stamps.iloc[-1].isoformat() if len(stamps) else None,
        score=report.score,
        floor=params.data.quality_floor,
        parts=score_parts(report),
        quarantined={str(reason): int(n) for reason, n in report.quarantined["reason"].value_counts().items()},
        flagged={name: report.counts[name] for name in ("gaps", "missing", "disordered", "stale", "jumps")},
        gaps=longest_gaps(report.gaps),
        weekly_sessions=report.weekly_sessions,
        recorded=sorted(given),
        costs=costs_of(params.costs, *venue_of({"symbol": name, "source": source.describe()})).describe(),
        spread_bps=float(2e4 * (spread / bars[quoted, CLOSE]).mean()) if len(spread) else None,
        spread_share=len(spread) / max(len(bars), 1),
        history_bars=n,
        families={family: training(family, given, n, params) for family in FAMILIES},
        against=None if against is None else difference(report.clean, timeframe, against, name, at, params),
    )


def difference(
    clean: pd.DataFrame, timeframe: str, against: Path, symbol: str, at: datetime, params: Params
) -> Difference:
    """Return how the clean bars of a file differ from those of another file of the same market (D5).

    Both are compared on the coarser of their timeframes. Raises as `check`.
    """
    other = make_source("files", path=against)
    theirs = other.fetch(symbol, as_of=at, ingested_at=at)
    theirs_tf = infer_timeframe(to_matrix(theirs)[:, OPEN_TIME])
    shared_tf = max(timeframe, theirs_tf, key=TIMEFRAME_SECONDS.__getitem__)
    found = cross_source_divergence(
        _coarser(clean, timeframe, shared_tf),
        _coarser(assess(theirs, theirs_tf, at).clean, theirs_tf, shared_tf),
        params.data.quality,
    )
    worst = found.flagged.reindex((found.flagged["bps"] - found.median_bps).abs().nlargest(NAMED_GAPS).index)
    return Difference(
        file=str(against),
        timeframe=shared_tf,
        shared=found.n,
        median_bps=found.median_bps,
        divergent=len(found.flagged),
        largest={stamp.isoformat(): float(bps) for stamp, bps in zip(worst["open_time"], worst["bps"], strict=True)},
    )


def _coarser(clean: pd.DataFrame, timeframe: str, target: str) -> pd.DataFrame:
    """Return clean bars of `timeframe` as bars of `target`."""
    if timeframe == target:
        return clean
    bars = resample(to_matrix(clean), TIMEFRAME_SECONDS[timeframe], TIMEFRAME_SECONDS[target])
    return to_frame(bars, target, None)


def score_parts(report: QualityReport) -> dict[str, float]:
    """Return the four factors of the score, as quality.assess multiplies them; each a fraction in [0, 1]."""
    clean, counts = len(report.clean), report.counts
    if clean == 0:
        return {"complete": 0.0, "usable": 0.0, "in order": 1.0, "moving": 1.0}
    return {
        "complete": clean / (clean + counts["missing"]),
        "usable": clean / report.rows,
        "in order": 1 - counts["disordered"] / report.rows,
        "moving": 1 - counts["stale"] / clean,
    }


def longest_gaps(gaps: pd.DataFrame) -> list[Gap]:
    """Return the NAMED_GAPS gaps with the most missing bars, longest first."""
    longest = gaps.nlargest(NAMED_GAPS, "missing")
    return [
        {"from": start.isoformat(), "until": end.isoformat(), "bars": int(missing)}
        for start, end, missing in zip(longest["start"], longest["end"], longest["missing"], strict=True)
    ]


def recorded_inputs(bars: Floats, records: Records) -> set[str]:
    """Return which inputs other than prices a market has, named as in `Column.needs`; bars (n, 9)."""
    books, feed = records
    columns = {"volume": bars[:, VOLUME], "taker": bars[:, TAKER_BUY], "spread": bars[:, HALF_SPREAD]}
    given = {name for name, values in columns.items() if not np.isnan(values).all()}
    if books is not None:
        tape = zip(TAPE_FIELDS, books.tape.T, strict=True)
        given |= {"book", *(f"context:{name}" for name, values in tape if not np.isnan(values).all())}
    if feed is not None:
        given |= {f"context:{CONTEXT_FIELDS[field]}" for field in np.unique(feed.field)}
    return given


def training(family: str, given: set[str], history_bars: int, params: Params) -> Training:
    """Describe what a family would be trained on: the schema rule leaves out columns whose input is not `given`."""
    columns = VIEWS[family].columns if family in VIEWS else VALIDATOR_COLUMNS
    lacking = absent_columns((*FEATURES.catalogue, *SIGNALS.catalogue), given)
    lacking |= {} if "taker" in given else {pattern_view.TAKER: "taker"}
    absent = {name: lacking[name] for name in columns if name in lacking}
    warm = max(0, history_bars - int(FEATURES.warmup.max()))
    scored = int(warm * (1 - params.splits.min_train_fraction))
    least = params.gate.min_events
    if scored < least:
        explanation = f"too short: at most {scored:,} rows to score, the gate needs {least:,}"
    elif family in ROWS_ARE_EVENTS:
        explanation = "yes, if it holds enough events"
    else:
        explanation = "yes"
    return Training(scored >= least, len(columns) - len(absent), absent, scored, explanation)
