"""List the signals of a market: the inputs an unavailable one lacks, the onsets of the others, and their scores.

Onsets and scores are those of the newest snapshot, as folded when it was ingested. A market that is only observed has
no snapshot; it is listed by the bars observed and by the signals stored with its decisions.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from bellwether.reports.chart import gather
from flows.support.installation import Installation
from pipelines.context_layout import CONTEXT_FIELDS, TAPE
from pipelines.contracts import OPEN_TIME, TAKER_BUY, VOLUME, Floats, JsonObject
from pipelines.costs import costs_of, venue_of
from pipelines.data.timeframes import Grid
from pipelines.errors import StateError
from pipelines.evaluation.signals import Scores, format_estimate, score_signals, write_page
from pipelines.features.catalog import absent_columns
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.signal_registry import SIGNAL_REGISTRY, direction, onsets
from pipelines.stage_outputs import grids_of, symbols_in

__all__ = ["SCORE_COLUMNS", "format_estimate", "listing", "missing_inputs", "score", "score_rows", "write"]
EVERY_BAR = 2**31  # more than any market has
SCORE_COLUMNS = ("signal", "n", "a week", "bars held", "hit rate", "gross bps", "net bps")


@dataclass(frozen=True, slots=True)
class Known:
    """Hold a market: decision bars (n, 9) on `grid`, signals (n, ks) on them, and its recorded inputs.

    given   inputs other than prices, named as in `Column.needs`
    """

    symbol: str
    grid: Grid
    bars: Floats
    signals: Floats
    given: set[str]


class SignalStatus(TypedDict):
    """Report one signal: `needs` as in `Column.needs`, number of onsets, and close of the last (UTC)."""

    category: str | None
    status: str
    needs: str | None
    onsets: int | None
    last: str | None


def listing(installation: Installation, symbol: str | None) -> JsonObject:
    """Return every row S1–S17 and D7 with its signals, JSON-ready; before the first ingest, what each of them needs.

    Raises  UnknownName for a market without data; StateError for a named market before the first ingest, or if the
            snapshot was folded by another catalogue
    """
    known = None if symbol is None and not _ingested(installation) else _known(installation, symbol)
    lines = [
        {"row": row, "description": about.description, "signal": name, **_signal_status(known, name)}
        for row, about in SIGNAL_REGISTRY.items()
        for name in about.signals or (None,)
    ]
    n = 0 if known is None else len(known.bars)
    return {
        "symbol": known and known.symbol,
        "bars": n,
        "to": _moment(known, n - 1) if known and n else None,
        "recorded": known and sorted(known.given),
        "signals": lines,
    }


def _signal_status(known: Known | None, name: str | None) -> SignalStatus:
    """Return the category of a signal, whether it is available, its number of onsets and the last of them (UTC)."""
    unknown = SignalStatus(category=None, status="rule, no signal", needs=None, onsets=None, last=None)
    if name is None:
        return unknown
    category = next((group for group, names in PRODUCERS.items() if name in names), None)
    column = SIGNALS.index.get(f"{name}.direction")
    if column is None:
        return {**unknown, "category": category, "status": "unavailable: needs a producer", "needs": "a producer"}
    needs = SIGNALS.catalogue[column].needs
    if known is None:
        status = f"needs {missing_inputs(needs)}" if needs else "needs prices"
        return {**unknown, "category": category, "status": status, "needs": needs}
    side = direction(known.signals, name)
    at = onsets(side)
    lacking = absent_columns((SIGNALS.catalogue[column],), known.given)
    warmup = int(SIGNALS.warmup[column])
    status = "available"
    if lacking and not len(at):
        status = f"unavailable: needs {missing_inputs(lacking[f'{name}.direction'], known.given)}"
    elif len(known.bars) < warmup:
        status = f"unavailable: needs {warmup:,} bars"
    return SignalStatus(
        category=category,
        status=status,
        needs=needs,
        onsets=len(at) if status == "available" else None,
        last=_moment(known, int(at[-1])) if len(at) else None,
    )


def missing_inputs(needs: str, given: Set[str] = frozenset()) -> str:
    """Return what of `Column.needs` is not among `given`, for people; a tape counts as one input."""
    ways = []
    for way in needs.split(" or "):
        lacking = [part.removeprefix("context:") for part in way.split(" and ") if part not in given]
        named = [name for name in lacking if name not in TAPE or name.startswith("order_flow")]
        named += ["a tape of the book"] if len(named) < len(lacking) else []
        ways.append(" and ".join("taker volume" if name == "taker" else name.replace("_", " ") for name in named))
    return " or ".join(ways)


def _ingested(installation: Installation) -> bool:
    """Return True if the features and signals of a snapshot were computed."""
    return (installation.workspace / "artifacts" / "features" / "meta.json").is_file()


def _known(installation: Installation, symbol: str | None) -> Known:
    """Return a market from the newest snapshot, or from what was observed and decided of it."""
    if symbol is None or symbol in symbols_in(installation.meta()):
        meta = installation.meta_of(symbol)
        name = str(meta["symbol"])
        bars, signals, levels, context = (
            _array(installation, name, array) for array in ("decision", "signals", "books", "context")
        )
        return Known(name, grids_of(meta)[0], bars, _of_this_catalogue(meta, signals), _given(bars, levels, context))
    drawn = gather(installation, symbol, EVERY_BAR)
    return Known(drawn.symbol, drawn.grid, drawn.bars, drawn.signals, _given(drawn.bars, None, None))


def _array(installation: Installation, symbol: str, name: str) -> Floats:
    """Return an array of one market of the newest data version."""
    array: Floats = np.load(installation.features_of(symbol) / f"{name}.npy")
    return array


def _of_this_catalogue(meta: Mapping[str, Any], signals: Floats) -> Floats:
    """Return the signals. Raises StateError if another catalogue folded them."""
    if meta["signal_columns"] != list(SIGNALS.columns):
        raise StateError(
            f"the newest snapshot holds {len(meta['signal_columns'])} signal columns of another catalogue, this one "
            f"has {len(SIGNALS.columns)}; run `bellwether run --once` to fold it again"
        )
    return signals


def _given(bars: Floats, levels: Floats | None, context: Floats | None) -> set[str]:
    """Return which inputs other than prices hold values: bars (n, 9), books (n, 2, levels, 3), context (n, width)."""
    inputs = {"volume": bars[:, VOLUME], "taker": bars[:, TAKER_BUY]}
    if levels is not None:
        inputs["book"] = levels[:, :, :1, 0]
    if context is not None:
        inputs |= {f"context:{name}": values for name, values in zip(CONTEXT_FIELDS, context.T, strict=True)}
    return {name for name, values in inputs.items() if values.size and not np.isnan(values).all()}


def score(installation: Installation, symbol: str | None) -> tuple[str, Scores]:
    """Return a market of the newest data version and its scores. Raises UnknownName for another: it has no history."""
    meta = installation.meta_of(symbol)
    name = str(meta["symbol"])
    signals = _of_this_catalogue(meta, _array(installation, name, "signals"))
    features = _array(installation, name, "features")
    grids = grids_of(meta)
    atr = features[:, meta["feature_columns"].index("atr_14")]
    costs = costs_of(installation.params.costs, *venue_of(meta))
    decision, base = _array(installation, name, "decision"), _array(installation, name, "base")
    return name, score_signals(signals, decision, base, atr, grids, installation.params, costs)


def score_rows(scores: Scores) -> list[list[Any]]:
    """Return a row for each signal under SCORE_COLUMNS, the best net return first and those without an onset last."""
    ranked = sorted(scores.scores, key=lambda s: (s.net_bps.n == 0, -s.net_bps.value if s.net_bps.n else 0.0))
    return [
        [s.signal, f"{s.onsets:,}", f"{s.per_week:.1f}", format_estimate(s.hold_bars), format_estimate(s.hit_rate, 3),
         format_estimate(s.gross_bps), format_estimate(s.net_bps)]
        for s in ranked
    ]  # fmt: skip


def write(symbol: str, scores: Scores, file: Path) -> Path:
    """Write the scores as one self-contained page, and return its path."""
    return write_page(file, scores, symbol)


def _moment(known: Known, at: int) -> str:
    """Return the close of a bar in UTC, to the minute: when its signals were known."""
    return datetime.fromtimestamp(known.grid.next_close(known.bars[at, OPEN_TIME]), UTC).strftime("%Y-%m-%d %H:%M")
