"""Measure the stars of the unicorn rating, on the newest snapshot or on a file that was not ingested."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from flows.support.installation import Installation
from flows.support.market_access import market_records
from pipelines.contracts import OPEN_TIME, Floats
from pipelines.data.alignment import align
from pipelines.data.bar_clock import clocked
from pipelines.data.quality import assess
from pipelines.data.schemas import to_matrix
from pipelines.data.sessions import market_grid
from pipelines.data.sources import make_source
from pipelines.data.symbols import parse_symbol
from pipelines.data.timeframes import decision_timeframe, resample
from pipelines.errors import StateError, UnknownName
from pipelines.evaluation.signals import Grids
from pipelines.evaluation.stars import Contribution, Contributions, measure_contributions
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.stars import history
from pipelines.stage_outputs import grids_of

COLUMNS = ("star", "true", "of bar x side", "lift bps [95 %]", "true for a side where")


@dataclass(frozen=True, slots=True)
class Measured:
    """Hold a market and the contributions of its stars; UTC closes of its first and last decision bar."""

    symbol: str
    timeframe: str
    first: str
    last: str
    contributions: Contributions

    def to_dict(self) -> dict[str, object]:
        """Return the market and the contributions, JSON-ready."""
        return {**asdict(self), "contributions": self.contributions.to_dict()}


def of_snapshot(installation: Installation, symbol: str | None) -> Measured:
    """Measure every star on one market of the newest data version; None = its first.

    Raises  UnknownName for a market it does not hold; StateError before the first ingest, or if it was folded by
            another catalogue
    """
    try:
        meta = installation.meta_of(None if symbol is None else parse_symbol(symbol))
    except UnknownName as error:
        raise UnknownName(f"{error}. Or measure a file with --path") from error
    if meta["signal_catalogue_hash"] != SIGNALS.catalogue_hash:
        raise StateError("the newest snapshot was folded by other signals; `bellwether run --once` folds it again")
    folder = installation.features_of(meta["symbol"])
    base, decision, signals = (np.load(folder / f"{name}.npy") for name in ("base", "decision", "signals"))
    grids = grids_of(meta)
    return _measured(str(meta["symbol"]), grids, decision, signals, base, installation.params)


def of_file(path: Path, symbol: str | None, context: list[Path], params: Params, at: datetime) -> Measured:
    """Read a file as ingest does, fold its signals, and measure; nothing is written.

    Raises  what the source raises, StateError for a file without bars
    """
    name = parse_symbol(symbol or "UNNAMED/USD")
    source = make_source("files", path=path)
    frame = source.fetch(name, as_of=at, ingested_at=at)
    base_grid = market_grid(frame)
    base = to_matrix(assess(frame, base_grid, at).clean)
    grid = base_grid.at(decision_timeframe(base_grid.timeframe, params.data.decision_timeframe))
    decision = resample(base, base_grid, grid)
    if not len(decision):
        raise StateError(f"{path} holds no whole {grid.timeframe} bar; use a longer file")
    levels, aligned = align(
        decision[:, OPEN_TIME], grid, *market_records(source, name, [str(file) for file in context], at)
    )
    signals = SIGNALS.run(clocked(decision, grid), levels, aligned)
    return _measured(name if symbol else str(path), (grid, base_grid), decision, signals, base, params)


def _measured(symbol: str, grids: Grids, decision: Floats, signals: Floats, base: Floats, params: Params) -> Measured:
    """Measure every star: decision (n, 9) bars, signals (n, ks) on them, base (m, 9) bars below them; their grids."""
    grid, _ = grids
    first, last = (_moment(grid.next_close(decision[i, OPEN_TIME])) for i in (0, -1))
    truth = history(clocked(decision, grid), signals, SIGNALS.columns)
    return Measured(symbol, grid.timeframe, first, last, measure_contributions(truth, decision, base, grids, params))


def rows(found: Contributions) -> list[list[str]]:
    """Return a row for each star and rating, in the order of COLUMNS."""
    return [_row(each) for each in (*found.stars, *found.ratings)]


def _row(star: Contribution) -> list[str]:
    """Return the cells of one star; its lift in basis points with a 95 % interval."""
    lift, text = star.lift_bps, "–"
    if not star.known:
        text = "inputs missing"
    elif np.isfinite(lift.low):
        text = f"{lift.value:+.1f} [{lift.low:+.1f}, {lift.high:+.1f}]"
    elif np.isfinite(lift.value):
        text = f"{lift.value:+.1f} [too few]"
    share = f"{star.prevalence:.2%}" if star.known else "–"
    return [star.name, share, f"{star.known:,}", text, star.definition]


def verdict(found: Contributions) -> str:
    """Return how many intervals exclude zero, and how many would by chance, in one sentence."""
    outside = found.excluding_zero
    return (
        f"of {found.measured} stars that could be measured, {len(outside)} have an interval without zero"
        f"{': ' + ', '.join(outside) if outside else ''}; {0.05 * found.measured:.1f} would by chance"
    )


def _moment(seconds: float) -> str:
    """Return epoch seconds as UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
