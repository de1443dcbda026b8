"""Markets that a command line offers: which symbols, from which source, checked before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bellwether.cli.options import canonical, day_or_moment
from pipelines.errors import BadValues, UnknownName
from pipelines.settings import load_params, settings

if TYPE_CHECKING:
    from flows.support.market_access import MarketOffer
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import SeriesFile
    from pipelines.params import Params


@dataclass(frozen=True, slots=True)
class Stated:
    """Hold what a person states of one or several markets; the fields are those of `MarketOffer`, as they were typed.

    source  None = not stated
    paths   FILE, or SYMBOL=FILE where there are several symbols
    days, since  first bar of an exchange, one of the two
    """

    source: str | None
    symbols: Sequence[str]
    paths: Sequence[str]
    options: "FileOptions"
    days: int | None = None
    since: str | None = None
    context: Sequence[Path] = ()
    series: Sequence["SeriesFile"] = field(default_factory=list)
    events: Path | None = None
    venue: str | None = None
    market: str | None = None
    sessions: str | None = None

    @property
    def empty(self) -> bool:
        """Return whether nothing was stated of any market: the universe is then as it is."""
        return not (
            self.source or self.symbols or self.paths or self.days or self.since or self.context or self.series
            or self.events or self.venue or self.market or self.sessions
        )  # fmt: skip


def offers_of(stated: Stated) -> "list[MarketOffer]":
    """Return the offered markets; none where nothing was stated. Everything is checked before a server starts.

    Raises  as `check_request`, `check_offer` and `requested_since`; BadValues for a file of no symbol in particular
    """
    if stated.empty:
        return []
    from flows.support.market_access import check_offer, exchange_plan, requested_since
    from pipelines.data.readers.events import read_events
    from pipelines.data.sources import check_request

    params, source = load_params(settings().params_file), stated.source or "simulator"
    begin = requested_since(source, stated.days, day_or_moment(stated.since), params.data.live_days)
    plan = exchange_plan(params, settings(), begin) if source == "exchange" else None
    history = "files" if source == "push" else source
    made = []
    for symbol, paths in by_symbol(stated, params, source):
        check_request(
            history, paths, symbol, params.simulator, plan, stated.context, stated.venue, stated.market, stated.options
        )
        assert symbol is not None  # no source goes without, and `check_request` says so
        offer = _offer(symbol, source, paths, begin, stated)
        check_offer(settings().workspace, offer)
        if stated.events is not None:
            read_events(stated.events, offer.symbol)
        made.append(offer)
    return made


def _offer(symbol: str, source: str, paths: Sequence[Path], since: datetime | None, stated: Stated) -> "MarketOffer":
    """Return one offer, with whole paths: other processes read them too."""
    from flows.support.market_access import MarketOffer, resolved_sessions

    return MarketOffer(
        symbol=symbol,
        source=source,
        paths=tuple(str(path.resolve()) for path in paths),
        since=since,
        context=tuple(str(path.resolve()) for path in stated.context),
        venue=stated.venue,
        market=stated.market,
        series=tuple(replace(each, file=str(Path(each.file).resolve())) for each in stated.series),
        events=str(stated.events.resolve()) if stated.events else None,
        sessions=resolved_sessions(stated.sessions),
        options=stated.options,
    )


def by_symbol(stated: Stated, params: "Params", source: str) -> list[tuple[str | None, list[Path]]]:
    """Return (symbol, its files) of each market; the symbol is None where none was stated and a source needs one.

    Raises  BadValues for a file without a symbol among several
    """
    files = [named_path(text) for text in stated.paths]
    symbols = list(dict.fromkeys([*stated.symbols, *(symbol for symbol, _ in files if symbol is not None)]))
    bare = [path for symbol, path in files if symbol is None]
    if bare and len(symbols) > 1:
        raise BadValues(
            f"--path {bare[0]}: of which of {', '.join(symbols)}? Write --path {symbols[0]}={bare[0]}, one for each "
            "symbol"
        )
    if not symbols and source == "simulator" and not files:
        return [(symbol, []) for symbol in _simulated(params)]
    if not symbols:
        return [(None, bare)]
    return [(symbol, [path for name, path in files if name in (None, symbol)]) for symbol in symbols]


def _simulated(params: "Params") -> list[str]:
    """Return the simulated symbols of this home, or before its first data version those of `params.yaml`."""
    from flows.support.holdings import held_markets

    held = held_markets(settings().workspace).values()
    own = [each.symbol for each in held if (each.facts.get("source") or {}).get("source") == "simulator"]
    return own or list(params.universe.symbols)


def named_path(text: str) -> tuple[str | None, Path]:
    """Return (symbol, file) of SYMBOL=FILE, (None, file) of a file alone, whose name may hold a = too."""
    name, sign, file = text.partition("=")
    if not sign or Path(text).exists():
        return None, Path(text)
    try:
        return canonical(name), Path(file)
    except UnknownName:
        return None, Path(text)
