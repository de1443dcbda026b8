"""The drift report as a page of some 100 kB: what was judged, where, against what, and how the columns moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats
from pipelines.evaluation.charts import axes_of, svg
from pipelines.evaluation.document import write_document
from pipelines.monitoring.drift import BlockDrift
from pipelines.monitoring.report import BlockReport

REFERENCE, LIVE, LIMIT = "#9db2bf", "#3b5bdb", "#b3261e"
BINS = 30
ACROSS = 2  # histograms side by side


@dataclass(frozen=True, slots=True)
class MarketLine:
    """Hold one market's line of the page: its newest judged block, None before any, and what is known in words."""

    symbol: str
    block: BlockDrift | None
    state: str


def write_drift_page(
    path: Path, title: str, found: BlockReport, lines: Sequence[str], markets: Sequence[MarketLine],
    links: Mapping[str, str], charts: str,
) -> Path:  # fmt: skip
    """Write the page of a block's report and return its path. Needs no network.

    lines    sentences on top: what was found, since when, whether it does harm
    markets  every market that was watched, the one of the block among them
    links    text → address of what belongs to it: Evidently's run, MLflow's run, Prefect's run
    charts   `histograms` of the report; drawing them takes a second, and every family of the report shows the same
    """
    block = found.block
    sentences = "".join(f"<li>{escape(line)}</li>" for line in lines)
    linked = " · ".join(
        f"<a href='{escape(address, quote=True)}'>{escape(text)}</a>" for text, address in links.items()
    )
    drifted, watched = len({*block.drifted, *block.vanished}), len({*block.effects, *block.missing})
    hidden = len({*block.drifted, *block.vanished} - set(found.columns))
    shown = (
        f"{drifted} of {watched} watched columns are over their threshold; shown are the {len(found.columns)} that are "
        f"over it or nearest to it{f', {hidden} drifted ones are not' if hidden else ''}"
    )
    body = (
        f"<p>{block.n} rows that the service used, {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC, "
        f"market time, against {len(found.reference):,} rows of the version's training.</p>"
        f"<ul>{sentences}</ul><p>{linked}</p>"
        f"<h2>Markets</h2>{_markets(markets)}"
        f"<h2>Columns</h2><p class='less'>{escape(shown)}. Distance: Wasserstein,"
        " over the standard deviation of training. A column alarms if both halves of the block show it.</p>"
        f"{_columns(found)}{charts}"
    )
    return write_document(path, title, body)


def _markets(markets: Sequence[MarketLine]) -> str:
    """Return the table of the markets."""
    rows = ""
    for market in markets:
        block = market.block
        score = "–" if block is None else _against(block.score, block.threshold)
        missing = "–" if block is None else _against(block.missing_score, block.missing_threshold)
        alarm = block is not None and (block.alarm or block.missing_alarm)
        rows += (
            f"<tr><td class='{'bad ' if alarm else ''}whole'>{escape(market.symbol)}</td>"
            f"<td class='number whole'>{score}</td><td class='number whole'>{missing}</td>"
            f"<td>{escape(market.state)}</td></tr>"
        )
    return (
        "<div class='wide'><table><tr><th>market</th><th class=number>score / threshold</th>"
        "<th class=number>missing / threshold</th><th></th></tr>"
        f"{rows}</table></div>"
    )


def _columns(found: BlockReport) -> str:
    """Return the table of the shown columns."""
    block, rows = found.block, ""
    for name in found.columns:
        words = [
            *(["drifted"] if name in block.persistent else []),
            *(["drifted in one half only"] if name in block.drifted and name not in block.persistent else []),
            *(["share missing changed"] if name in block.vanished else []),
            *(["not judged: too few values"] if name not in block.effects else []),
        ]
        before, now = (_center(frame[name].to_numpy()) for frame in (found.reference, found.current))
        low, high = found.missing_limits.get(name, (np.nan, np.nan))
        alarming = name in block.persistent or name in block.vanished
        effect = _against(block.effects.get(name, np.nan), found.thresholds.get(name, np.nan))
        missing = f"{block.missing[name]:.1%} / {low:.1%} to {high:.1%}" if name in block.missing else "–"
        rows += (
            f"<tr><td class='{'bad ' if alarming else ''}whole'>{escape(name)}</td>"
            f"<td class='number whole'>{effect}</td>"
            f"<td class=number>{before}</td><td class=number>{now}</td><td class='number whole'>{missing}</td>"
            f"<td>{escape(', '.join(words))}</td></tr>"
        )
    return (
        "<div class='wide'><table><tr><th>column</th><th class=number>distance / threshold</th>"
        "<th class=number>median in training</th><th class=number>median here</th>"
        f"<th class=number>missing / no alarm</th><th></th></tr>{rows}</table></div>"
    )


def _against(value: float, limit: float) -> str:
    """Return a value next to its limit; a dash where it is not known."""
    return f"{value:.2f} / {limit:.2f}" if np.isfinite(value) else "–"


def _center(values: Floats) -> str:
    """Return the median of the values that are there; a dash where none is."""
    known = values[np.isfinite(values)]
    return f"{np.median(known):.4g}" if len(known) else "–"


def histograms(found: BlockReport) -> str:
    """Return the distributions of the shown columns, in training and in the block, as SVG; nothing without values."""
    before, here = found.reference, found.current
    sides = [(name, before[name].dropna().to_numpy(), here[name].dropna().to_numpy()) for name in found.columns]
    drawn = [side for side in sides if len(side[1]) and len(side[2])]
    if not drawn:
        return ""
    rows = -(-len(drawn) // ACROSS)
    figure, grid = axes_of(rows, ACROSS, 1.9 * rows)
    axes = np.ravel(grid)
    for axis, (name, training, live) in zip(axes, drawn, strict=False):
        _draw(axis, name, training, live, name in found.block.persistent)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return svg(figure)


def _draw(axis: Any, name: str, before: Floats, here: Floats, alarming: bool) -> None:
    """Draw the shares of a column's values in training and in the block; the outer 0.5 % lies in the end bins."""
    low, high = np.quantile(np.concatenate([before, here]), (0.005, 0.995))
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    for values, colour, label, filled in ((before, REFERENCE, "training", True), (here, LIVE, "this block", False)):
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        axis.stairs(counts / len(values), edges, fill=filled, color=colour, label=label, linewidth=1.4)
    axis.set_title(name, color=LIMIT if alarming else "#1c2733")
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
