"""Charts of pages that are written by the dozen: matplotlib's SVG takes 50 kB, where a script would take 1.8 MB.

Nothing here needs a screen. `Figure` shares no state with others, so that flows may draw at once. Every flow and stage
that judges imports this module and few draw, so matplotlib is imported by the functions.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Ints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches of a chart that fills the page
POINTS = 400  # of a line in a chart of half that width
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "bellwether", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 9, "axes.titlelocation": "left", "legend.frameon": False,
    "legend.fontsize": 8,
}  # fmt: skip


def axes_of(rows: int, columns: int, height: float, **wanted: Any) -> "tuple[Figure, Any]":
    """Return a figure of this height in inches, and its axes (rows, columns).

    wanted  what `Figure.subplots` takes
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **wanted)


def svg(figure: "Figure") -> str:
    """Return a figure as HTML; the same figure gives the same bytes."""
    from matplotlib import rc_context

    held = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    drawn = held.getvalue()
    return f"<div class='wide'>{drawn[drawn.index('<svg') :]}</div>"


def thinned(n: int) -> Ints:
    """Return which of n points of a line are drawn, (m,) ascending: all up to POINTS, else as many with both ends."""
    return np.arange(n) if n <= POINTS else np.linspace(0, n - 1, POINTS).astype(np.int64)
