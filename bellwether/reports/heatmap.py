"""Draw the heatmap of an order book: size at each price over time, liquidity walls, clusters and depth."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats, JsonObject
from pipelines.data.orderbook.heatmap import LEVELS_PER_SIDE, Heatmap
from pipelines.evaluation.figures import write_figure

BID, ASK = "#1a9e6a", "#d1495b"


def grid(heatmap: Heatmap) -> tuple[Floats, Floats]:
    """Return (m,) prices of all levels that any snapshot reached, lowest first, and (m, k) intensity there.

    NaN where a snapshot did not reach. A level with both sides shows their sum.
    """
    at = np.rint((heatmap.prices - heatmap.prices.min()) / heatmap.width).astype(int)
    shown = np.full((at.max() + 1, len(heatmap.times)), np.nan)
    when = np.broadcast_to(np.arange(len(heatmap.times))[:, None], at.shape)
    shown[at, when] = 0.0
    np.add.at(shown, (at, when), heatmap.intensity)
    return heatmap.prices.min() + heatmap.width * np.arange(len(shown)), shown


def figure(heatmap: Heatmap, title: str) -> Any:
    """Return the Plotly figure: on the left the book over time, on the right the cumulative size up to each price.

    The colour grows with the square root of intensity: otherwise one wall would leave all else black.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    times = [datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%S") for t in heatmap.times.tolist()]
    prices, shown = grid(heatmap)
    drawn = make_subplots(rows=1, cols=2, shared_yaxes=True, column_widths=[0.82, 0.18], horizontal_spacing=0.03)
    drawn.add_trace(
        go.Heatmap(
            x=times, y=prices, z=np.sqrt(shown), customdata=shown, zmin=0.0, zmax=1.0, colorscale="Inferno",
            colorbar={"title": "intensity", "tickvals": np.sqrt([0, 0.05, 0.25, 0.5, 1]).tolist(),
                      "ticktext": ["0", "0.05", "0.25", "0.5", "1"], "x": 1.02},
            hovertemplate="%{x}<br>%{y}<br>intensity %{customdata:.3f}<extra></extra>",
        ), 1, 1,
    )  # fmt: skip
    for side, (name, colour) in enumerate((("bid", BID), ("ask", ASK))):
        line = {"color": colour, "width": 2, "shape": "hv"}
        drawn.add_trace(
            go.Scatter(x=times, y=heatmap.best[:, side], mode="lines", line=line, name=f"best {name}"), 1, 1
        )
        j = np.arange(LEVELS_PER_SIDE)
        level = heatmap.prices[-1, LEVELS_PER_SIDE + j] if side else heatmap.prices[-1, LEVELS_PER_SIDE - 1 - j]
        drawn.add_trace(
            go.Scatter(x=heatmap.profile[side], y=level, mode="lines", fill="tozerox", line={"color": colour},
                       name=f"depth of {name}s, mean"), 1, 2,
        )  # fmt: skip
    for wall in heatmap.liquidity_walls:
        colour = BID if wall.side > 0 else ASK
        drawn.add_hline(y=wall.price, row=1, col=1, line={"color": colour, "width": 1.5, "dash": "dot"})
        drawn.add_annotation(
            x=times[0], y=wall.price, row=1, col=1, xanchor="left", yanchor="bottom", showarrow=False, bgcolor="white",
            text=f"wall {wall.size:.1f} medians, in {wall.persistence:.0%}", font={"color": colour, "size": 12},
        )  # fmt: skip
    for cluster in heatmap.clusters:
        drawn.add_hrect(
            y0=cluster.low - heatmap.width / 2, y1=cluster.high + heatmap.width / 2, row=1, col=2, line_width=0,
            fillcolor=BID if cluster.side > 0 else ASK, opacity=0.3,
        )  # fmt: skip
    imbalance, concentration, liquidity = heatmap.summary[:3].tolist()
    drawn.update_layout(
        title=f"{title}: {len(times)} snapshots to {times[-1].replace('T', ' ')} UTC, levels of {heatmap.width:g}; "
        f"imbalance {imbalance:+.2f}, concentration {concentration:.3f}, liquidity {liquidity:.2f}",
        template="plotly_white", height=860, margin={"l": 70, "r": 20, "t": 60, "b": 50},
        legend={"orientation": "h", "y": -0.06},
    )  # fmt: skip
    drawn.update_yaxes(title_text="price", row=1, col=1)
    drawn.update_xaxes(title_text="size up to here; clusters shaded", row=1, col=2)
    return drawn


def to_dict(heatmap: Heatmap) -> JsonObject:
    """Return what the figure shows, JSON-ready: prices in quote currency, sizes of walls in medians."""
    imbalance, concentration, liquidity = heatmap.summary[:3].tolist()
    return {
        "snapshots": len(heatmap.times),
        "from": datetime.fromtimestamp(heatmap.times[0], UTC).isoformat(),
        "to": datetime.fromtimestamp(heatmap.times[-1], UTC).isoformat(),
        "level_width": heatmap.width,
        "imbalance": imbalance,
        "concentration": concentration,
        "liquidity": liquidity,
        "liquidity_walls": [asdict(wall) for wall in heatmap.liquidity_walls],
        "clusters": [asdict(cluster) for cluster in heatmap.clusters],
    }


def write(heatmap: Heatmap, title: str, file: Path) -> Path:
    """Write the figure as one self-contained page, and return its path."""
    return write_figure(file, figure(heatmap, title), title)
