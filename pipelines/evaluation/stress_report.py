"""The stress report as one self-contained page: the largest portfolios the limits allow, their losses, and charts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Estimate
from pipelines.evaluation.document import write_document
from pipelines.evaluation.figures import drawn, loader
from pipelines.evaluation.stress_limits import Case, largest, verdict
from pipelines.evaluation.stressed import StressResult

COLOURS = {"long": "#3b5bdb", "short": "#d9730d"}
PALE = {"long": "#b3c0f2", "short": "#f0c49b"}  # without a stop
LIMIT = "#b3261e"
BINS = 60


def format_percent(estimate: Estimate | None) -> str:
    """Return an estimate in per cent of equity: "value [low, high]"; an exact figure has no bounds."""
    if estimate is None or not np.isfinite(estimate.value):
        return "–"
    if not np.isfinite(estimate.low):
        return f"{estimate.value:.2%}"
    return f"{estimate.value:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"


def write_page(path: Path, title: str, cases: Sequence[Case], limit: float, about: str) -> Path:
    """Write the report and return its path. Needs no network.

    cases  of `stress_limits.stress_of_limits`
    limit  drawdown limit, fraction of equity
    about  a sentence on the data
    """
    most = largest(cases)
    charts = "".join(
        drawn(figure) for figure in (bars(most, limit), paths(most, limit), losses(most)) if figure is not None
    )
    findings = "".join(f"<li>{escape(line)}</li>" for line in verdict(cases, limit))
    return write_document(
        path,
        title,
        f"<p>{escape(about)}</p><ul>{findings}</ul>"
        f"{charts}<h2>The largest portfolio the limits allow</h2>{_table(most, limit)}"
        f"<h2>Every row of limits</h2>{_rows(cases, limit)}"
        "<h2>How each scenario is computed, and on what</h2>" + _methods(most) + loader(),
    )


def _table(cases: Sequence[Case], limit: float) -> str:
    """Return the HTML table of every scenario's loss and drawdown for the given cases."""
    head = "".join(f"<th>{escape(case.name)}</th>" for case in cases)
    body = ""
    for results in zip(*(case.results for case in cases), strict=True):
        body += f"<tr><td>{escape(results[0].scenario)}</td>{''.join(_cell(result, limit) for result in results)}</tr>"
    return (
        "<p class='less'>Largest loss below the highest booked equity (at entry, for what is opened once), as the "
        "account counts its drawdown; below it the fall from the highest mark, which counts profit never taken. "
        "Estimates are 99 % quantiles with their 95 % intervals. "
        f"<span class='bad'>Red: above the drawdown limit of {limit:.0%}.</span></p>"
        f"<table><tr><th>scenario</th>{head}</tr>{body}</table>"
    )


def _cell(result: StressResult, limit: float) -> str:
    """Return the table cell of one result, red above the limit."""
    if result.absent:
        return f"<td class='less'>{escape(result.absent)}</td>"
    mark = " class='bad'" if result.loss is not None and result.loss.value > limit else ""
    below = f"<br>drawdown {format_percent(result.drawdown)}" if result.drawdown is not None else ""
    return f"<td{mark}>{format_percent(result.loss)}{below}</td>"


def _rows(cases: Sequence[Case], limit: float) -> str:
    """Return the HTML table of losses for every row of limits."""
    names = [result.scenario for result in cases[0].results]
    head = "".join(f"<th>{_broken(escape(name))}</th>" for name in names)
    body = ""
    for case in cases:
        cells = ""
        for result in case.results:
            loss = result.loss
            mark = " class='bad'" if loss is not None and loss.value > limit else ""
            cells += f"<td{mark}>{'–' if loss is None else f'{loss.value:.2%}'}</td>"
        body += f"<tr><td class='whole'>{escape(case.allowed.row)}: {escape(case.name)}</td>{cells}</tr>"
    return (
        "<p class='less'>Largest loss, share of equity.</p>"
        f"<div class='wide'><table><tr><th>limits</th>{head}</tr>{body}</table></div>"
    )


def _methods(cases: Sequence[Case]) -> str:
    """Return the HTML table of each scenario's method, n and further figures."""
    body = ""
    for case in cases:
        for result in case.results:
            figures = "; ".join(f"{name} {_figure(name, value)}" for name, value in result.figures.items())
            measured = " · ".join(part for part in (result.detail or result.absent or "", figures) if part)
            body += (
                f"<tr><td>{escape(result.scenario)}<br><span class='less'>{escape(case.name)}</span></td>"
                f"<td>{escape(result.method)}</td><td>{result.n:,}</td><td>{escape(measured)}</td></tr>"
            )
    return f"<table><tr><th>scenario</th><th>how</th><th>n</th><th>measured</th></tr>{body}</table>"


def _figure(name: str, value: Estimate) -> str:
    """Return a figure in the unit its name tells: hours, a multiple, else per cent."""
    if "_hours" in name:
        return f"{value.value:.0f}"
    return f"{value.value:.3g}" if "times" in name else format_percent(value)


# ---- pictures -----------------------------------------------------------------------------------------------------


def _layout(figure: Any, title: str, height: int) -> None:
    """Place the title above the chart and the legend below the axis titles."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}, "x": 0.01}, template="plotly_white", height=height,
        margin={"t": 70, "l": 70, "r": 30, "b": 110},
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0.5, "xanchor": "center"},
    )  # fmt: skip


def _broken(scenario: str) -> str:
    """Return a scenario's name broken into lines, for narrow columns."""
    return scenario.replace(":", "<br>").replace("_", "<br>")


def bars(cases: Sequence[Case], limit: float) -> Any:
    """Draw losses by scenario against the limit; None if every scenario is absent."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for case in cases:
        known = {r.scenario: e for r in case.results if (e := r.loss) is not None}
        if not known:
            continue
        up = [e.high - e.value if np.isfinite(e.high) else None for e in known.values()]
        down = [e.value - e.low if np.isfinite(e.low) else None for e in known.values()]
        figure.add_trace(
            go.Bar(
                x=[_broken(name) for name in known], y=[e.value for e in known.values()], name=case.name,
                marker={"color": (COLOURS if case.stopped else PALE)[case.side]},
                error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1},
            )
        )  # fmt: skip
    if not figure.data:
        return None
    figure.add_hline(y=limit, line={"color": LIMIT, "dash": "dash"}, annotation_text=f"drawdown limit {limit:.0%}",
                     annotation_position="top right", annotation_font_color=LIMIT)  # fmt: skip
    figure.update_yaxes(title_text="largest loss, share of equity", tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(title_text="scenario")
    _layout(figure, "Losses of the largest portfolio that the limits allow", 430)
    figure.update_layout(barmode="group")
    return figure


def paths(cases: Sequence[Case], limit: float) -> Any:
    """Draw the drawdown through each recorded crisis from the worst entry on; None if no crisis was given."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    found = [r for case in cases for r in case.results if r.scenario.startswith("crisis:") and len(r.path)]
    names = list(dict.fromkeys(result.scenario for result in found))
    if not names:
        return None
    rows = -(-len(names) // 2)
    figure = make_subplots(rows=rows, cols=2, subplot_titles=names, vertical_spacing=0.16, horizontal_spacing=0.09)
    for case in cases:
        for result in case.results:
            if result.scenario not in names:
                continue
            row, column = divmod(names.index(result.scenario), 2)
            figure.add_trace(
                go.Scatter(
                    x=(result.at * 1000).astype("datetime64[ms]"), y=-result.path, mode="lines", name=case.name,
                    legendgroup=case.name, showlegend=result.scenario == names[0],
                    line={"color": COLOURS[case.side], "dash": "solid" if case.stopped else "dot", "width": 1.5},
                ),
                row=row + 1, col=column + 1,
            )  # fmt: skip
    figure.add_hline(y=-limit, line={"color": LIMIT, "dash": "dash", "width": 1})
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title_text="drawdown, share of equity", col=1)
    figure.update_xaxes(tickformat="%d %b", title_text="UTC", row=rows)
    _layout(figure, "Recorded crises, from the entry with the largest loss", 320 * rows + 60)
    figure.update_layout(margin_t=90)
    return figure


def losses(cases: Sequence[Case]) -> Any:
    """Draw the distribution of the bootstrapped losses; None if nothing was drawn."""
    import plotly.graph_objects as go

    figure = go.Figure()
    drawn = [(case, r) for case in cases for r in case.results if len(r.samples)]
    if not drawn:
        return None
    top = max(float(np.quantile(r.samples, 0.999)) for _, r in drawn)
    if top <= 0.0:
        return None
    for case, result in drawn:
        counts, edges = np.histogram(np.minimum(result.samples, top), BINS, (0.0, top))
        figure.add_trace(
            go.Scatter(
                x=(edges[:-1] + edges[1:]) / 2, y=counts / counts.sum(), mode="lines", name=case.name,
                line={"color": COLOURS[case.side], "dash": "solid" if case.stopped else "dot", "shape": "hvh"},
            )
        )  # fmt: skip
    figure.update_xaxes(title_text="largest loss, share of equity; the last step contains everything beyond it",
                        tickformat=".1%")  # fmt: skip
    figure.update_yaxes(title_text="share of paths", type="log", dtick=1, tickformat=".2~%")
    _layout(figure, f"Bootstrapped returns: {drawn[0][1].method}", 400)
    return figure
