"""Draw a market: candles, the onsets of signals, decisions and regimes.

Nothing is computed here: signals come from the newest snapshot, and after its end from those stored with each decision.
A bar after the snapshot without a decision has no signals, and is drawn without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from flows.support.installation import Installation
from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    OPEN_TIME,
    REGIMES,
    VOLUME,
    Decision,
    Floats,
    JsonObject,
    finite_or_none,
)
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import UnknownName
from pipelines.evaluation.figures import write_figure
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.columns import SIGNAL_PARTS
from pipelines.signals.signal_registry import direction, onsets
from pipelines.stage_outputs import grids_of, symbols_in
from pipelines.store import DecisionRecord

SHOWN = ("ict", "order_flow")  # categories drawn at once; the others wait in the legend
# columns that describe more than one signal, or are named by another word
SHARED_DETAILS = {
    "amt_accumulation": ("amt_phase",),
    "amt_distribution": ("amt_phase",),
    "unicorn": ("stars.long", "stars.short", "stars.coverage"),
}
COLOURS = dict(zip(REGIMES, ("#4c78a8", "#b8b8b8", "#e45756", "#72b7b2"), strict=True))


@dataclass(frozen=True, slots=True)
class ChartData:
    """Hold what is drawn.

    bars       (n, 9) decision bars on `grid`, stamped at their open
    signals    (n, len(SIGNALS.columns)) on them; NaN where none were computed
    decisions  those made on these bars, oldest first
    """

    symbol: str
    grid: Grid
    bars: Floats
    signals: Floats
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Describe the onset of a signal: its bar, direction (-1 or 1), strength, and price zone; NaN if it has none.

    details  column → value of what else is known of it, such as the volume behind an order block; see `detail_columns`
    """

    signal: str
    at: int
    direction: int
    strength: float
    low: float
    high: float
    details: dict[str, float]


def gather(installation: Installation, symbol: str | None, last: int) -> ChartData:
    """Return the newest `last` decision bars of a market with their signals and decisions.

    Raises  UnknownName for a market without data, StateError before the first ingest
    """
    markets = symbols_in(installation.meta())
    name = symbol or next(iter(markets))
    meta = installation.meta_of(name if name in markets else None)  # one that is observed alone has the first's grid
    grid, base_grid = grids_of(meta)
    bars, signals = np.empty((0, BAR_WIDTH)), np.empty((0, len(SIGNALS.columns)))
    if name in markets:
        folder = installation.features_of(name)
        bars, signals = np.load(folder / "decision.npy"), np.load(folder / "signals.npy")
    end = grid.next_close(bars[-1, OPEN_TIME]) if len(bars) else -np.inf
    observed = installation.store.bars(name, end - 1.0)
    if not len(bars) and not len(observed):
        raise UnknownName(f"no bars of {name!r}; known: {', '.join({*markets, *installation.store.symbols()})}")
    live = resample(observed, base_grid, grid) if len(observed) else bars[:0]
    bars = np.vstack([bars, live])[-last:]
    first = datetime.fromtimestamp(grid.next_close(bars[0, OPEN_TIME]), UTC)
    records = installation.store.decisions(name, since=first)
    signals = np.vstack([signals, _decided_signals(live, records, grid)])[-last:]
    return ChartData(name, grid, bars, signals, tuple(record.decision for record in records))


def _decided_signals(bars: Floats, records: Sequence[DecisionRecord], grid: Grid) -> Floats:
    """Return the (n, k) signal rows stored with the decisions on these bars; NaN for a bar without a decision."""
    known = {record.decision.as_of.timestamp(): np.frombuffer(record.signals, dtype="<f8") for record in records}
    missing = np.full(len(SIGNALS.columns), np.nan)
    closes = grid.closes(bars[:, OPEN_TIME]).tolist()
    return np.array([known.get(close, missing) for close in closes]).reshape(len(bars), len(SIGNALS.columns))


def marks(signals: Floats) -> list[Mark]:
    """Return the onsets of all signals in time order: a direction that differs from the bar before."""
    found = []
    for name in (name for names in PRODUCERS.values() for name in names):
        side, at = direction(signals, name), [SIGNALS.index[f"{name}.{part}"] for part in SIGNAL_PARTS[1:]]
        more = {column: SIGNALS.index[column] for column in detail_columns(name)}
        for i in onsets(side):
            known = {column: float(signals[i, j]) for column, j in more.items() if np.isfinite(signals[i, j])}
            strength, low, high = signals[i, at].tolist()
            found.append(Mark(name, int(i), int(side[i]), strength, low, high, known))
    return sorted(found, key=lambda mark: (mark.at, mark.signal))


def detail_columns(name: str) -> tuple[str, ...]:
    """Return the columns that describe a signal besides its side, strength and prices: what its mark shows with it."""
    own = tuple(column for column in SIGNALS.columns if column.startswith(f"{name}."))
    return (*own[len(SIGNAL_PARTS) :], *SHARED_DETAILS.get(name, ()))


def to_dict(drawn: ChartData) -> JsonObject:
    """Return what is drawn, JSON-ready; times are closes in UTC."""
    times = [_moment(t) for t in drawn.grid.closes(drawn.bars[:, OPEN_TIME]).tolist()]
    return {
        "symbol": drawn.symbol,
        "bars": len(times),
        "from": times[0],
        "to": times[-1],
        "without_signals": int(np.isnan(drawn.signals).all(axis=1).sum()),
        "signals": [
            {"signal": m.signal, "at": times[m.at], "direction": m.direction, "strength": finite_or_none(m.strength),
             "low": finite_or_none(m.low), "high": finite_or_none(m.high), "details": m.details}
            for m in marks(drawn.signals)
        ],
        "decisions": [
            {"id": d.id, "as_of": d.as_of.isoformat(), "action": d.action, "entry": d.entry, "stop": d.stop,
             "target": d.take_profits[0] if d.take_profits else None, "regime": d.regime, "tier": d.tier}
            for d in drawn.decisions if d.action != "NO_TRADE"
        ],
    }  # fmt: skip


def write(drawn: ChartData, file: Path) -> Path:
    """Write the chart as one self-contained page, and return its path."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    bars, times = drawn.bars, [_moment(t) for t in drawn.grid.closes(drawn.bars[:, OPEN_TIME]).tolist()]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.85, 0.15], vertical_spacing=0.02)
    figure.add_trace(
        go.Candlestick(x=times, open=bars[:, OPEN], high=bars[:, HIGH], low=bars[:, LOW], close=bars[:, CLOSE],
                       name=drawn.symbol, showlegend=False), row=1, col=1,
    )  # fmt: skip
    reach = float(np.median(bars[:, HIGH] - bars[:, LOW]))
    for category, names in PRODUCERS.items():
        for i, name in enumerate(names):
            mine = [mark for mark in marks(drawn.signals) if mark.signal == name]
            figure.add_trace(_trace(go, mine, bars, times, reach, i, category), row=1, col=1)
    for decision in (d for d in drawn.decisions if d.action != "NO_TRADE" and d.entry is not None):
        _add_decision(figure, go, decision)
    figure.add_trace(go.Bar(x=times, y=bars[:, VOLUME], name="volume", marker_color="#9db2bf", showlegend=False),
                     row=2, col=1)  # fmt: skip
    for first, end, regime in _regime_spans(drawn):
        figure.add_vrect(x0=_moment(first), x1=_moment(end), fillcolor=COLOURS[regime], opacity=0.12, line_width=0)
    for regime, colour in COLOURS.items():
        swatch = {"symbol": "square", "size": 12, "color": colour, "opacity": 0.4}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=regime, marker=swatch))
    without = int(np.isnan(drawn.signals).all(axis=1).sum())
    note = f", {without} of them without signals" if without else ""
    emitted = sum(d.action != "NO_TRADE" for d in drawn.decisions)
    figure.update_layout(
        title=f"{drawn.symbol}: {len(bars):,} bars of {drawn.grid.timeframe} to {times[-1]} UTC{note}; "
        f"{len(drawn.decisions):,} decisions, {emitted} emitted",
        xaxis_rangeslider_visible=False, template="plotly_white", height=900, legend={"groupclick": "toggleitem"},
        hovermode="closest", margin={"l": 60, "r": 20, "t": 60, "b": 40},
    )  # fmt: skip
    figure.update_yaxes(title_text="price", row=1, col=1)
    figure.update_yaxes(title_text="volume", row=2, col=1)
    return write_figure(file, figure, f"{drawn.symbol}: signals and decisions")


def _trace(go: Any, mine: list[Mark], bars: Floats, times: list[str], reach: float, rank: int, category: str) -> Any:
    """Return the marks of one signal: under the bar for a rise, above it for a fall, each signal at its own height."""
    away = reach * (0.6 + 0.5 * rank)
    return go.Scatter(
        x=[times[m.at] for m in mine],
        y=[bars[m.at, LOW] - away if m.direction > 0 else bars[m.at, HIGH] + away for m in mine],
        mode="markers",
        name=mine[0].signal if mine else "",
        showlegend=bool(mine),
        legendgroup=category,
        legendgrouptitle_text=category,
        visible=True if category in SHOWN else "legendonly",
        marker={
            "symbol": ["triangle-up" if m.direction > 0 else "triangle-down" for m in mine],
            "size": 9,
            "line": {"width": 1, "color": ["#1a7f37" if m.direction > 0 else "#b42318" for m in mine]},
        },
        text=[
            f"{m.signal} {'up' if m.direction > 0 else 'down'}, strength {m.strength:.2f}{_zone(m)}{_details(m)}"
            for m in mine
        ],
        hovertemplate="%{text}<br>%{x}<extra></extra>",
    )


def _zone(mark: Mark) -> str:
    """Return the prices of a mark as text; empty if it has none."""
    return f", prices {mark.low:,.2f} to {mark.high:,.2f}" if np.isfinite(mark.low) and np.isfinite(mark.high) else ""


def _details(mark: Mark) -> str:
    """Return the details of a mark as lines of text; empty if it has none."""
    return "".join(f"<br>{column.partition('.')[2] or column} {value:.2f}" for column, value in mark.details.items())


def _add_decision(figure: Any, go: Any, decision: Decision) -> None:
    """Add the entry of a decision, with its stop and target until it expires."""
    until = (decision.expiry or decision.as_of).isoformat()
    colour = "#1a7f37" if decision.action == "BUY" else "#b42318"
    hover = f"{decision.action} {decision.size:.2%}, edge {decision.edge_bps or 0:.1f} bps, {decision.id}"
    figure.add_trace(
        go.Scatter(x=[decision.as_of.isoformat()], y=[decision.entry], mode="markers+text", text=[decision.action],
                   textposition="top center", marker={"symbol": "star", "size": 15, "color": colour}, showlegend=False,
                   hovertext=hover),
        row=1, col=1,
    )  # fmt: skip
    for level, dash in ((decision.stop, "dot"), (decision.take_profits[0] if decision.take_profits else None, "dash")):
        if level is not None:
            figure.add_shape(type="line", x0=decision.as_of.isoformat(), x1=until, y0=level, y1=level,
                             line={"color": colour, "width": 1.5, "dash": dash}, row=1, col=1)  # fmt: skip


def _regime_spans(drawn: ChartData) -> list[tuple[float, float, str]]:
    """Return (from, to, regime) of consecutive decisions in the same regime; epoch seconds."""
    found: list[tuple[float, float, str]] = []
    for decision in drawn.decisions:
        if decision.regime is None:
            continue
        end = decision.as_of.timestamp()
        if found and found[-1][2] == decision.regime and end - found[-1][1] <= drawn.grid.step_s:
            found[-1] = (found[-1][0], end, decision.regime)
        else:
            found.append((end - drawn.grid.step_s, end, decision.regime))
    return found


def _moment(seconds: float) -> str:
    """Return epoch seconds as UTC, to the minute."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
