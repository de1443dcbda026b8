"""The signals of a market: which there are, what one that cannot speak waits for, and what each was worth.

Counts and scores are those of the newest snapshot: what was folded when it was ingested. A market that is only observed
has no snapshot; it is listed by the bars observed and by the signals stored with its decisions.
"""

from collections.abc import Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from flows.chart import gather
from flows.site import Site
from pipelines.contracts import CONTEXT_FIELDS, OPEN_TIME, TAKER_BUY, TAPE, TIMEFRAME_SECONDS, VOLUME, Floats
from pipelines.errors import StateError, UnknownName
from pipelines.evaluation.signals import Scores, score_signals, shown, write_page
from pipelines.features.catalog import absent_columns
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.rows import ROWS, begins, spoken

__all__ = ["SCORED", "listing", "score", "score_rows", "shown", "words", "write"]
EVERY_BAR = 2**31  # of a market that is only observed
SCORED = ("signal", "n", "a week", "bars held", "hit rate", "gross bps", "net bps")


@dataclass(frozen=True, slots=True)
class Known:
    """A market's decision bars (n, 8) of `step_s` seconds, signals (n, ks) on them, and what was recorded beside prices
    in the words of `Column.needs`."""

    symbol: str
    step_s: int
    bars: Floats
    signals: Floats
    given: set[str]


def listing(site: Site, symbol: str | None) -> dict[str, Any]:
    """Every row S1–S17 and D7 with its signals, JSON-ready; before the first ingest, what each of them needs.

    Raises UnknownName for a market nobody has data of, StateError for one asked for before the first ingest, or if the
    snapshot was folded by another catalogue.
    """
    known = None if symbol is None and not _ingested(site) else _known(site, symbol)
    lines = [
        {"row": row, "told": about.told, "signal": name, **_line(known, name)}
        for row, about in ROWS.items()
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


def _line(known: Known | None, name: str | None) -> dict[str, Any]:
    """What can be said of one signal: its category, whether it can speak, how often it began to, and when last."""
    silent = {"category": None, "status": "rule, no signal", "needs": None, "spoke": None, "last": None}
    if name is None:
        return silent
    category = next((group for group, heard in PRODUCERS.items() if name in heard), None)
    column = SIGNALS.index.get(f"{name}.direction")
    if column is None:
        return silent | {"category": category, "status": "unavailable: needs a producer", "needs": "a producer"}
    needs = SIGNALS.catalogue[column].needs
    if known is None:
        return silent | {"category": category, "status": f"needs {words(needs)}" if needs else "needs prices",
                         "needs": needs}  # fmt: skip
    side = spoken(known.signals, name)
    at = begins(side)
    lacking = absent_columns((SIGNALS.catalogue[column],), known.given)
    warmup = int(SIGNALS.warmup[column])
    status = "available"
    if lacking and not len(at):
        status = f"unavailable: needs {words(lacking[f'{name}.direction'], known.given)}"
    elif len(known.bars) < warmup:
        status = f"unavailable: needs {warmup:,} bars"
    spoke = None if status != "available" else len(at)
    return {"category": category, "status": status, "needs": needs, "spoke": spoke,
            "last": _moment(known, int(at[-1])) if len(at) else None}  # fmt: skip


def words(needs: str, given: Set[str] = frozenset()) -> str:
    """What of `Column.needs` is not among `given`, for people; a tape is one thing to record."""
    ways = []
    for way in needs.split(" or "):
        lacking = [part.removeprefix("context:") for part in way.split(" and ") if part not in given]
        told = [name for name in lacking if name not in TAPE or name.startswith("order_flow")]
        told += ["a tape of the book"] if len(told) < len(lacking) else []
        ways.append(" and ".join("taker volume" if name == "taker" else name.replace("_", " ") for name in told))
    return " or ".join(ways)


def _ingested(site: Site) -> bool:
    return (site.workspace / "artifacts" / "features" / "meta.json").is_file()


def _known(site: Site, symbol: str | None) -> Known:
    described, meta = site.manifest(), site.meta()
    step_s = TIMEFRAME_SECONDS[meta["decision_timeframe"]]
    if symbol in (None, described["symbol"]):
        bars, signals, levels, context = (_array(site, name) for name in ("decision", "signals", "books", "context"))
        return Known(str(described["symbol"]), step_s, bars, _of_this_catalogue(meta, signals),
                     _given(bars, levels, context))  # fmt: skip
    drawn = gather(site, symbol, EVERY_BAR)
    return Known(drawn.symbol, drawn.step_s, drawn.bars, drawn.signals, _given(drawn.bars, None, None))


def _array(site: Site, name: str) -> Floats:
    array: Floats = np.load(site.workspace / "artifacts" / "features" / f"{name}.npy")
    return array


def _of_this_catalogue(meta: dict[str, Any], signals: Floats) -> Floats:
    if meta["signal_columns"] != list(SIGNALS.columns):
        raise StateError(
            f"the newest snapshot holds {len(meta['signal_columns'])} signal columns of another catalogue, this one "
            f"has {len(SIGNALS.columns)}; run `bellwether run --once` to fold it again"
        )
    return signals


def _given(bars: Floats, levels: Floats | None, context: Floats | None) -> set[str]:
    """What is there beside prices: bars (n, 8), books (n, 2, levels, 3), context (n, CONTEXT_WIDTH)."""
    told = {"volume": bars[:, VOLUME], "taker": bars[:, TAKER_BUY]}
    if levels is not None:
        told["book"] = levels[:, :, :1, 0]
    if context is not None:
        told |= {f"context:{name}": values for name, values in zip(CONTEXT_FIELDS, context.T, strict=True)}
    return {name for name, values in told.items() if values.size and not np.isnan(values).all()}


def score(site: Site, symbol: str | None) -> tuple[str, Scores]:
    """The market of the newest snapshot and its scores. Raises UnknownName for another one: it has no history here."""
    described, meta = site.manifest(), site.meta()
    name = str(described["symbol"])
    if symbol not in (None, name):
        raise UnknownName(
            f"the newest snapshot is of {name}, not of {symbol!r}; ingest that one to score signals on it"
        )
    signals = _of_this_catalogue(meta, _array(site, "signals"))
    features, step_s = _array(site, "features"), TIMEFRAME_SECONDS[meta["decision_timeframe"]]
    atr = features[:, meta["feature_columns"].index("atr_14")]
    return name, score_signals(signals, _array(site, "decision"), _array(site, "base"), atr, step_s, site.params)


def score_rows(scores: Scores) -> list[list[Any]]:
    """A line a signal under SCORED, the best net return first and those that never spoke last."""
    ranked = sorted(scores.scores, key=lambda s: (s.net_bps.n == 0, -s.net_bps.value if s.net_bps.n else 0.0))
    return [
        [s.signal, f"{s.began:,}", f"{s.per_week:.1f}", shown(s.hold_bars), shown(s.hit_rate, 3), shown(s.gross_bps),
         shown(s.net_bps)]
        for s in ranked
    ]  # fmt: skip


def write(symbol: str, scores: Scores, file: Path) -> Path:
    return write_page(file, scores, symbol)


def _moment(known: Known, at: int) -> str:
    """Close of a bar: when what stands on it was known."""
    return datetime.fromtimestamp(known.bars[at, OPEN_TIME] + known.step_s, UTC).strftime("%Y-%m-%d %H:%M")
