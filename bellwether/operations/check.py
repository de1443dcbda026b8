"""Check a data file before any server is started: what ingest would report, and what could be trained from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd

from flows.support.holdings import Held, held_markets
from flows.support.market_access import grid_of_file, grid_of_market, history_end, market_records, placed
from pipelines.context_layout import CONTEXT_FIELDS, TAPE_FIELDS
from pipelines.contracts import DAY_S, Floats, JsonObject, utc
from pipelines.costs import costs_of, venue_of
from pipelines.data.embargo import Window, inside
from pipelines.data.quality import QualityReport, assess, cross_source_divergence
from pipelines.data.readers.context import read_context_file
from pipelines.data.readers.events import read_events
from pipelines.data.readers.reading import FileOptions
from pipelines.data.schemas import SPREAD, epoch_seconds, to_frame, to_matrix
from pipelines.data.series import SeriesFile, series_of
from pipelines.data.sessions import distinct
from pipelines.data.sources import UNNAMED, Records, make_source
from pipelines.data.symbols import parse_symbol
from pipelines.data.timeframes import Grid, decision_timeframe, resample
from pipelines.errors import BadValues
from pipelines.families import FAMILIES
from pipelines.features.catalog import FEATURES, absent_columns
from pipelines.features.series import SERIES_COLUMNS
from pipelines.models import pattern_view
from pipelines.models.views import VIEWS
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS

ROWS_ARE_EVENTS = ("validator", "pattern")  # their number is known only after signals were folded
NAMED_GAPS = 5
FLAGGED = ("gaps", "missing", "disordered", "stale", "jumps", "splits", "shut")


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

    read_as       how the file was read; None where its reader does not say. read_as_text: the same for people
    parts         factors of the score, each 1.0 where nothing is wrong
    flags         everything found, with the first places, sizes and cause
    blocked       why nothing may be trained on it whatever its score; None if nothing forbids it
    sessions      when its market is open; no_bar: what a bar that is not there means, missing or no-trade
    events        windows of the calendar of events, None without one
    context_read_as  how each file of context was read
    costs         the row of `costs` its trades would pay
    spread_bps    mean spread of the bars that have one, basis points of the close; None where no bar has
    spread_share  share of the bars that have one; trades on the others are executed at mid and pay the spread of costs
    history_bars  decision bars before the last trading days, which are set aside for the live service
    against       how a second source differs, None without one; it lowers no score, as it does not show which is wrong
    home          what this installation holds of the market; None if not asked, or if it holds nothing
    """

    file: str
    symbol: str | None
    timeframe: str
    decision_timeframe: str
    read_as: JsonObject | None
    read_as_text: str
    rows: int
    first: str | None
    last: str | None
    score: float
    floor: float
    parts: dict[str, float]
    quarantined: dict[str, int]
    flagged: dict[str, int]
    flags: list[JsonObject]
    blocked: str | None
    gaps: list[Gap]
    sessions: str
    no_bar: str
    recorded: list[str]
    context_read_as: list[str]
    events: str | None
    costs: str
    spread_bps: float | None
    spread_share: float
    history_bars: int
    families: dict[str, Training]
    against: Difference | None = None
    home: str | None = None

    @property
    def passed(self) -> bool:
        """Return True if a run would take the file."""
        return self.score >= self.floor and self.blocked is None


def check(
    path: Path | Sequence[Path], symbol: str | None, context: list[Path], params: Params, at: datetime,
    against: Path | None = None,
    venue: str | None = None, market: str | None = None, series: Sequence[SeriesFile] = (),
    events: Path | None = None, sessions: str | None = None, workspace: Path | None = None,
    options: FileOptions | None = None,
) -> Checked:  # fmt: skip
    """Read the file as ingest does and assess it as of `at` (aware).

    against  a file of the same market from elsewhere, to compare with
    venue, market  where it was recorded, None = not stated
    series   files of named series; events: a calendar of events
    sessions  when its market is open, as stated; None = as the bars show it
    workspace  of an installation, with whose market the file is compared; None = with none
    options  what the files do not show
    Raises   what the files source raises; NotEnoughData where the two files share fewer than ten bars; with a workspace
             as grid_of_market
    """
    name = parse_symbol(symbol or UNNAMED)
    source = make_source("files", path=path, venue=venue, market=market, options=options)
    frame = source.fetch(name, as_of=at, ingested_at=at)
    held = None if workspace is None else held_as(workspace, name if symbol else None)
    if held is None or workspace is None:
        grid = grid_of_file(source, frame, sessions)
    else:
        grid = grid_of_market(workspace, source, held.symbol, frame, sessions)
    report = assess(placed(source, frame, grid), grid, at, rules=params.data.quality)
    opens, spreads = epoch_seconds(report.clean["open_time"]), report.clean[SPREAD].to_numpy()
    decision_grid = grid.at(decision_timeframe(grid.timeframe, params.data.decision_timeframe))
    given = recorded_inputs(report.clean, market_records(source, name, [str(file) for file in context], at, series))
    history = opens[opens < history_end(opens, grid, params.data.live_days)]
    n = len(distinct(decision_grid.slots(history)))
    quoted = np.isfinite(spreads)
    spread = spreads[quoted]
    stamps = report.clean["open_time"]
    read_as = getattr(source, "read_as", None)
    # what `source.describe` says of it, without a hash of the files
    recorded = {"venue": venue or getattr(read_as, "venue", None), "market": market}
    return Checked(
        file=str(path) if isinstance(path, Path) else ", ".join(map(str, path)),
        symbol=name if symbol else None,
        timeframe=grid.timeframe,
        decision_timeframe=decision_grid.timeframe,
        read_as=None if read_as is None else read_as.to_dict(),
        read_as_text=f"read as: bars of {grid.timeframe}, {len(frame):,} rows"
        if read_as is None
        else read_as.describe(),
        rows=report.rows,
        first=stamps.iloc[0].isoformat() if len(stamps) else None,
        last=stamps.iloc[-1].isoformat() if len(stamps) else None,
        score=report.score,
        floor=params.data.quality_floor,
        parts=score_parts(report),
        quarantined={str(reason): int(n) for reason, n in report.quarantined["reason"].value_counts().items()},
        flagged={name: report.counts[name] for name in FLAGGED},
        flags=[one.to_dict() for one in report.flags],
        blocked=report.blocked,
        gaps=longest_gaps(report.gaps),
        sessions=grid.calendar.describe(),
        no_bar="no-trade" if grid.no_trade else "missing",
        recorded=sorted(given),
        context_read_as=[
            *(read_context_file(file).read_as for file in context if not file.is_dir()),
            *(
                f"{each.field}: {each.name} in {each.unit}, known {each.lag_s:g} s after its time, for "
                f"{each.max_age_s / DAY_S:g} days"
                for each in series_of(series)
            ),
        ],
        events=None if events is None else embargoed(read_events(events, name), opens),
        costs=costs_of(params.costs, *venue_of({"symbol": name, "source": recorded})).describe(),
        spread_bps=float(2e4 * (spread / report.clean["close"].to_numpy()[quoted]).mean()) if len(spread) else None,
        spread_share=len(spread) / max(len(opens), 1),
        history_bars=n,
        families={family: training(family, given, n, params) for family in FAMILIES},
        against=None if against is None else difference(report.clean, grid, against, name, at, params),
        home=None if held is None else f"this home holds {held.describe()}",
    )


def held_as(workspace: Path, symbol: str | None) -> Held | None:
    """Return the market that a home holds of this symbol; without a symbol, the only one. Raises BadValues of several.

    None where the home holds nothing of it: the file would be an addition
    """
    held = held_markets(workspace)
    if symbol is None and len(held) > 1:
        raise BadValues(f"this home holds {', '.join(held)}: name the one to compare the file with by --symbol")
    return held.get(symbol) if symbol else next(iter(held.values()), None)


def embargoed(windows: Sequence[Window], opens: Floats) -> str:
    """Return in words how many windows a calendar has for this market, and how many of the bars open inside them."""
    shut, last = int(inside(opens, windows).sum()), max((each.until for each in windows), default=None)
    until = "" if last is None else f", the last until {utc(last):%F %H:%M} UTC"
    return f"{len(windows):,} windows{until}; {shut:,} of {len(opens):,} bars inside: nothing is opened there"


def difference(clean: pd.DataFrame, grid: Grid, against: Path, symbol: str, at: datetime, params: Params) -> Difference:
    """Return how the clean bars of a file differ from those of another file of the same market (D5).

    Both are compared on the coarser of their timeframes. Raises as `check`.
    """
    other = make_source("files", path=against)
    theirs = other.fetch(symbol, as_of=at, ingested_at=at)
    their_grid = grid_of_file(other, theirs, None)
    shared = max(grid, their_grid, key=lambda each: each.step_s)
    found = cross_source_divergence(
        _coarser(clean, grid, shared),
        _coarser(assess(theirs, their_grid, at).clean, their_grid, shared),
        params.data.quality,
    )
    worst = found.flagged.reindex((found.flagged["bps"] - found.median_bps).abs().nlargest(NAMED_GAPS).index)
    return Difference(
        file=str(against),
        timeframe=shared.timeframe,
        shared=found.n,
        median_bps=found.median_bps,
        divergent=len(found.flagged),
        largest={stamp.isoformat(): float(bps) for stamp, bps in zip(worst["open_time"], worst["bps"], strict=True)},
    )


def _coarser(clean: pd.DataFrame, grid: Grid, target: Grid) -> pd.DataFrame:
    """Return clean bars of one grid as bars of another."""
    if grid == target:
        return clean
    return to_frame(resample(to_matrix(clean), grid, target), target, None)


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


def recorded_inputs(clean: pd.DataFrame, records: Records) -> set[str]:
    """Return which inputs other than prices a market has, named as in `Column.needs`; clean: schemas.BARS."""
    books, feed = records
    columns = {"volume": "volume", "taker": "taker_buy_volume", "spread": SPREAD}
    given = {name for name, column in columns.items() if not np.isnan(clean[column].to_numpy()).all()}
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
    # a field that no series was given for is spare, not lacking
    columns = tuple(name for name in columns if name not in SERIES_COLUMNS or name not in lacking)
    absent = {name: lacking[name] for name in columns if name in lacking}
    warm, fraction, least = int(FEATURES.warmup.max()), params.splits.min_train_fraction, params.gate.min_events
    scored = int(max(0, history_bars - warm) * (1 - fraction))
    if scored < least:
        enough = warm + int(np.ceil(least / (1 - fraction)))
        explanation = (
            f"too short: at most {scored:,} rows to score, the gate needs {least:,}; {enough:,} bars of history "
            f"suffice, these are {history_bars:,}"
        )
    elif family in ROWS_ARE_EVENTS:
        explanation = "yes, if it holds enough events"
    else:
        explanation = "yes"
    return Training(scored >= least, len(columns) - len(absent), absent, scored, explanation)
