"""Sources of bars: one Protocol, one dict. A source returns bars as it has them; quality.assess checks them."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np
import pandas as pd

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Books, ContextFeed, JsonObject
from pipelines.data.readers import files
from pipelines.data.readers.context import merge_feeds, read_context
from pipelines.data.readers.named import read_series
from pipelines.data.readers.reading import FileOptions, ReadAs
from pipelines.data.schemas import to_frame
from pipelines.data.series import SeriesFile, series_of
from pipelines.data.symbols import kind_of, parse_symbol
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, BadValues, UnknownName, UnreadableFile
from pipelines.market_params import MarketKind, SimulatorParams

if TYPE_CHECKING:  # imported where they are used: a look at a file waits for no exchange, simulator or order book
    from pipelines.data.readers.exchange import Backfill
    from pipelines.data.readers.pages import Page
    from pipelines.data.simulator.latent import Design
    from pipelines.data.simulator.market import Market

MARKETS: tuple[str, ...] = get_args(MarketKind)
UNNAMED = "UNNAMED/USD"  # the symbol a file is read as where none is given: assessing bars needs none
BOOK_EVERY_S = 60.0  # books taken from a recording: one a minute

Records = tuple[Books | None, ContextFeed | None]


class MarketSource(Protocol):
    """Fetch bars and records of a market."""

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        """Return bars of `symbol` known at `as_of` (aware), columns and types of schemas.LAYOUT, not yet checked.

        ingested_at  when they are stored (aware); None stamps each bar with the moment it was known
        Raises       UnknownName for a symbol the source does not hold
        """
        ...

    def records(self, symbol: str, as_of: datetime) -> Records:
        """Return books and context known at `as_of` that come with the bars of `symbol`; None = the source has none."""
        ...

    def describe(self) -> JsonObject:
        """Return the provenance, JSON-ready and the same for the same data in any place: part of a data version."""
        ...


def _aware(as_of: datetime) -> pd.Timestamp:
    """Return `as_of` as a Timestamp. Raises BadTimes if it has no time zone."""
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    return pd.Timestamp(as_of)


class _NewestMarkets:
    """Hold the markets of the newest spec, read-only: a turn reads each twice, for the live days and for the history.

    Threads may ask for different markets at the same time; each is made once.
    """

    def __init__(self) -> None:
        """Hold none."""
        self.guard = Lock()
        self.key: tuple[SimulatorParams, Design] | None = None
        self.made: dict[str, tuple[Lock, list[_Made]]] = {}

    def get(self, spec: SimulatorParams, design: "Design", symbol: str) -> "_Made":
        """Return a market by its canonical symbol, and make it if it is not there."""
        with self.guard:
            if self.key != (spec, design):
                self.key, self.made = (spec, design), {}
            own, found = self.made.setdefault(symbol, (Lock(), []))
        with own:
            if not found:
                found.append(_make(spec, design, symbol))
            return found[0]


@dataclass(frozen=True, slots=True)
class _Made:
    """Hold a market, and its state at the end of the history as `saved_state.pack` returns it."""

    market: "Market"
    history_end: bytes


def _make(spec: SimulatorParams, design: "Design", symbol: str) -> _Made:
    """Make one market; its arrays are read-only."""
    from pipelines.data.simulator import saved_state  # only for this source, see above
    from pipelines.data.simulator.market import simulate

    states: list[bytes] = []
    made = simulate(spec, design, symbol=symbol, at_history_end=lambda path: states.append(saved_state.pack(path)))
    for array in (made.bars, made.books.known, made.books.levels, made.books.tape, made.feed.value):
        array.flags.writeable = False
    return _Made(made, states[0])


_newest = _NewestMarkets()


class SimulatorSource:
    """Serve the embedded simulated markets: 1-minute bars, books and funding rates of each symbol, and their truth.

    It lives in simulated time: every bar is stamped as ingested when it was known, whichever clock the caller reads, so
    that the same spec gives the same snapshot hash today and next year.
    """

    def __init__(self, spec: SimulatorParams, design: "Design | None" = None) -> None:
        """Take the spec, and a design other than DESIGN; a market is made at its first use."""
        from pipelines.data.simulator.latent import DESIGN  # only for this source, see above

        self.spec, self.design = spec, design or DESIGN

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the canonical symbols of the markets it makes, the leader first."""
        from pipelines.data.simulator.followers import symbols_of  # only for this source, see above

        return symbols_of(self.spec)

    @property
    def market(self) -> "Market":
        """Return the leader's market, with its truth; its arrays are read-only."""
        return self.market_of(self.spec.symbol)

    def market_of(self, symbol: str) -> "Market":
        """Return a market with its truth; its arrays are read-only. Raises UnknownName."""
        return _newest.get(self.spec, self.design, self.own(symbol)).market

    def prepare(self, symbols: Sequence[str] | None = None) -> None:
        """Make these markets (None: all) side by side, so that `fetch` waits for none. Raises UnknownName."""
        from pipelines.data.simulator.stream import side_by_side  # only for this source, see above

        side_by_side(self.market_of, [self.own(symbol) for symbol in (self.symbols if symbols is None else symbols)])

    def save_states(self, folder: Path, symbols: Sequence[str] | None = None) -> None:
        """Save each market (None: all) as it stands at the end of the history.

        `SimulatedStream.load(folder)` goes on from there without making the history again. Raises UnknownName.
        """
        from pipelines.data.simulator import saved_state  # only for this source, see above
        from pipelines.data.simulator.latent import MINUTES_A_DAY
        from pipelines.data.simulator.market_path import MarketPath

        self.prepare(symbols)
        for symbol in self.symbols if symbols is None else symbols:
            made = _newest.get(self.spec, self.design, self.own(symbol))
            path = MarketPath(self.spec, self.design, symbol=symbol)
            saved_state.write(path, self.spec.history_days * MINUTES_A_DAY, made.history_end, folder)

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        """Return bars as MarketSource defines."""
        own = self.own(symbol)
        closed = int((_aware(as_of) - pd.Timestamp(self.spec.start)) // timedelta(minutes=1))  # bars closed at as_of
        return to_frame(self.market_of(own).bars[: max(closed, 0)], Grid("1m"), None)

    def own(self, symbol: str) -> str:
        """Return the canonical form of a symbol of these markets. Raises UnknownName for another."""
        wanted, names = parse_symbol(symbol), self.symbols
        if wanted not in names:
            raise UnknownName(
                f"the simulator has no {wanted}; it makes {', '.join(names)}. Use one of these, or set "
                "simulator.symbol and simulator.followers."
            )
        return wanted

    def records(self, symbol: str, as_of: datetime) -> Records:
        """Return books and context as MarketSource defines."""
        made = self.market_of(symbol)
        return known_at(as_of, made.books, made.feed)

    def describe(self) -> JsonObject:
        """Return the provenance as MarketSource defines: of all its markets, which one spec makes."""
        return {"source": "simulator", "spec": self.spec.model_dump(mode="json"), "design": asdict(self.design)}


class FileSource:
    """Read recorded files of one symbol as one history (monthly archives, a folder).

    The files are of the symbol that is fetched first, and of no other; where a column names another, they are refused.
    """

    def __init__(
        self,
        paths: Path | Sequence[Path],
        options: FileOptions | None = None,
        venue: str | None = None,
        market: str | None = None,
    ) -> None:
        """Take the paths, in the layouts of readers.files.

        options        what the files do not show: time zone, timeframe, what a time stamps
        venue, market  where the files were recorded, which decides what a trade costs; None: the venue of a layout
                       that only one venue writes, else not stated
        """
        self.paths = (paths,) if isinstance(paths, Path) else tuple(paths)
        self.options, self.venue, self.market = options or FileOptions(), venue, market
        self.symbol: str | None = None
        self.read_as: ReadAs | None = None  # how the files were read, from the first fetch on
        self.session_dates = False  # whether their times are dates of sessions, as midnights; from the first fetch on

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        """Return bars as MarketSource defines."""
        moment, name = _aware(as_of), parse_symbol(symbol)
        if self.symbol not in (None, name):
            raise UnknownName(f"these files were read as {self.symbol}, now as {name}. Make a source for each symbol.")
        self.symbol = name
        taken = ingested_at or as_of
        reading = files.read(self.paths, taken, self.options)
        check_identity(reading.read_as, name)
        self.read_as, self.session_dates, frame = reading.read_as, reading.session_dates, reading.frame
        if ingested_at is None:
            frame["ingested_at"] = frame["known_at"]
        # Bars between as_of and ingestion are for a later fetch. A bar from after its own ingestion has a false stamp,
        # one without a time is a broken row: both stay, so that quality.assess quarantines them with a reason.
        later = (frame["known_at"] > moment) & (frame["known_at"] <= pd.Timestamp(taken))
        return frame[~later].reset_index(drop=True) if later.any() else frame

    def records(self, symbol: str, as_of: datetime) -> Records:
        """Return books and context as MarketSource defines."""
        return None, None

    def describe(self) -> JsonObject:
        """Return the provenance as MarketSource defines; after a fetch also how the files were read."""
        shown = None if self.symbol is None else kind_of(self.symbol)
        made: JsonObject = {
            "source": "files",
            "options": asdict(self.options),
            "venue": self.venue or self._layout_venue(),
            "market": self.market or shown,
            "files": [_fingerprint(path) for path in files.files_of(self.paths)],
        }
        return made if self.read_as is None else made | {"read_as": self.read_as.to_dict()}

    def _layout_venue(self) -> str | None:
        """Return the one venue that writes the layout of these files; None where many do."""
        if self.read_as is not None:
            return self.read_as.venue
        venues = {files.venue_of_layout(path) for path in self.paths}
        return venues.pop() if len(venues) == 1 else None


def check_identity(read_as: ReadAs, symbol: str) -> None:
    """Raise BadValues if a column of the files names another market than `symbol`, a canonical one.

    A column may name the pair, with or without its settlement currency, or the base alone (a share's ticker). UNNAMED,
    a file that is looked at before it has a symbol, is any market
    """
    found = read_as.identity.get("symbol")
    if found is None or symbol == UNNAMED:
        return
    pair = symbol.partition(":")[0]
    plain = re.sub(r"^[A-Z]:", "", found.strip().upper())  # Polygon's X:BTCUSD
    try:
        same = parse_symbol(plain).partition(":")[0] in (pair, pair.partition("/")[0])
    except UnknownName:
        bare = re.sub(r"[^A-Z0-9]", "", plain)
        same = bare in (re.sub(r"[^A-Z0-9]", "", pair.partition("/")[0]), pair.replace("/", ""))
    if not same:
        raise BadValues(
            f"{read_as.members[0]}: its symbol is {found}, and {symbol} was wanted. Give the file of {symbol}, or "
            "state "
            f"--symbol as the file has it."
        )


def _fingerprint(path: Path) -> JsonObject:
    """Return name, sha256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "sha256": digest, "bytes": path.stat().st_size}


class ExchangeSource:
    """Fetch closed bars of exchanges, the first of them that answers; see readers.exchange. Pages are stored."""

    def __init__(self, plan: "Backfill") -> None:
        """Take the plan; nothing is requested before `fetch`."""
        self.plan = plan
        self.parts: list[Page] = []

    def fetch(self, symbol: str, as_of: datetime, ingested_at: datetime | None) -> pd.DataFrame:
        """Fetch as MarketSource; also raises VenueDown if no venue gives the rest (received pages stay stored)."""
        from pipelines.data.readers import exchange  # only for this source, see above

        moment, name = _aware(as_of), parse_symbol(symbol)
        timeframe = self.plan.params.timeframe
        self.parts = exchange.backfill(self.plan, name, as_of)
        bars = np.concatenate([np.empty((0, BAR_WIDTH)), *(part.bars for part in self.parts)])
        closed = Grid(timeframe).closes(bars[:, OPEN_TIME]) <= moment.timestamp()
        return to_frame(bars[closed], Grid(timeframe), ingested_at)

    def records(self, symbol: str, as_of: datetime) -> Records:
        """Return books and context as MarketSource defines."""
        return None, None

    def describe(self) -> JsonObject:
        """Return the venues of the bars fetched last, and how far they differed where one followed another."""
        from pipelines.data.readers import exchange  # only for this source, see above

        return {"source": "exchange", "timeframe": self.plan.params.timeframe, **exchange.describe(self.parts)}


@dataclass(frozen=True, slots=True)
class _Request:
    """Hold the arguments of `make_source`."""

    spec: SimulatorParams | None
    path: Path | Sequence[Path] | None
    plan: "Backfill | None"
    venue: str | None
    market: str | None
    options: FileOptions | None = None


def _simulator(request: _Request) -> MarketSource:
    """Return the simulator. Raises BadValues without a spec, with a path, or with a venue."""
    path, spec = request.path, request.spec
    _refuse_venue("simulator", "it is its own venue, `simulator`", request)
    if path is not None:
        raise BadValues(
            f"source 'simulator' reads no file, yet the path {path} was given. Use the source 'files', or no path."
        )
    if spec is None:
        raise BadValues("source 'simulator' needs its spec: pass load_params().simulator.")
    return SimulatorSource(spec)


def _files(request: _Request) -> MarketSource:
    """Return the source of recorded files. Raises BadValues without a path, UnknownName for an unknown market."""
    if not request.path:
        raise BadValues(f"source 'files' needs a path to a {', '.join(files.EXTENSIONS)} file. Give one with --path.")
    if request.market is not None and request.market not in MARKETS:
        raise UnknownName(f"no market {request.market!r}; known: {', '.join(MARKETS)}. Use one of these with --market.")
    return FileSource(request.path, request.options, request.venue, request.market)


def _refuse_venue(source: str, why: str, request: _Request) -> None:
    """Raise BadValues if a venue or a market is stated for a source that knows its own."""
    if request.venue is not None or request.market is not None:
        raise BadValues(f"--venue and --market are for --source files; of source {source!r} {why}. Leave them out.")


def _exchange(request: _Request) -> MarketSource:
    """Return the source of exchanges. Raises BadValues without a plan, with a path, or with a venue."""
    path, plan = request.path, request.plan
    _refuse_venue("exchange", "every bar names its venue (data.exchange.venues in params.yaml)", request)
    if path is not None:
        raise BadValues(f"source 'exchange' reads no file, yet the path {path} was given. Use 'files', or no path.")
    if plan is None:
        raise BadValues("source 'exchange' needs a start and a folder of pages: pass a Backfill as `plan`.")
    return ExchangeSource(plan)


SOURCES: dict[str, Callable[[_Request], MarketSource]] = {
    "simulator": _simulator,
    "files": _files,
    "exchange": _exchange,
}


def make_source(
    name: str,
    *,
    spec: SimulatorParams | None = None,
    path: Path | Sequence[Path] | None = None,
    plan: "Backfill | None" = None,
    venue: str | None = None,
    market: str | None = None,
    options: FileOptions | None = None,
) -> MarketSource:
    """Return the source named `name`: "simulator" needs `spec`, "files" a `path` (or several), "exchange" a `plan`.

    venue, market  where files were recorded; the other sources know it themselves
    options        what files do not show
    Raises UnknownName with the known names, BadValues if its argument is missing.
    """
    if name not in SOURCES:
        raise UnknownName(f"no market source {name!r}; known: {', '.join(SOURCES)}. Use one of these.")
    return SOURCES[name](_Request(spec, path, plan, venue, market, options))


def read_books_and_context(
    paths: Sequence[Path], symbol: str, as_of: datetime, named: Sequence[SeriesFile] = ()
) -> Records:
    """Return context and books known at `as_of` from additional files: context files, or folders of a recorded book.

    named   files of named series
    Raises as `read_context` and `replay_recording` do
    """
    folders = [path for path in paths if path.is_dir()]
    if len(folders) > 1:
        raise BadValues(f"{len(folders)} recorded books given; a market has one. Keep {folders[0]}.")
    feeds = [read_context(path) for path in paths if not path.is_dir()]
    file_of = {each.name: Path(each.file) for each in named}
    feeds += [read_series(series, file_of[series.name]) for series in series_of(named)]
    books = None
    for folder in folders:
        from pipelines.data.readers import recordings  # only for a recorded book, see above

        books = recordings.replay_recording(folder, BOOK_EVERY_S).books
        feeds += [feed for feed in [recordings.read_funding(folder)] if feed is not None]
    return known_at(as_of, books, merge_feeds(feeds))


def known_at(as_of: datetime, books: Books | None, feed: ContextFeed | None) -> Records:
    """Return the part of the records that was known at `as_of`."""
    moment = _aware(as_of).timestamp()
    if books is not None:
        n = int(np.searchsorted(books.known, moment, "right"))
        books = Books(books.known[:n], books.levels[:n], books.tape[:n])
    if feed is not None:
        n = int(np.searchsorted(feed.known, moment, "right"))
        feed = ContextFeed(feed.known[:n], feed.field[:n], feed.value[:n])
    return books, feed


def check_request(
    name: str,
    paths: Path | Sequence[Path] | None,
    symbol: str | None,
    spec: SimulatorParams | None = None,
    plan: "Backfill | None" = None,
    context: Sequence[Path] = (),
    venue: str | None = None,
    market: str | None = None,
    options: FileOptions | None = None,
) -> None:
    """Raise at once, without reading a bar, the errors that make_source and fetch would raise later.

    symbol  None = the simulator's own
    spec    None: whether the simulator makes `symbol` is left for later
    plan    of an exchange: an unknown venue, or one without bars of that timeframe
    context files of context, or the folder of a recorded book
    venue, market  as of `make_source`
    Raises  UnknownName, BadValues or UnreadableFile
    """
    for file in context:
        if not file.exists():
            raise UnreadableFile(f"{file}: no such file or folder of context. Check --context.")
    files_given = [paths] if isinstance(paths, Path) else list(paths or ())
    if name == "simulator" and not files_given and venue is None and market is None:
        if symbol is not None and spec is not None:
            SimulatorSource(spec).own(symbol)
        return
    make_source(name, spec=spec, path=files_given or None, plan=plan, venue=venue, market=market, options=options)
    if name == "exchange" and plan is not None:
        if symbol is None:
            raise BadValues("an exchange has many symbols. Name one, e.g. --symbol BTC/USDT.")
        plan.check()
    for path in files_given:
        files.check_path(path)
        if symbol is None:
            raise BadValues(f"{path}: no file names its symbol. Give it, e.g. --symbol BTC/USDT.")
