"""The page of an experiment: what is compared by which rules, how far the test is, and what happens next."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from pipelines.contracts import Floats, JsonObject, utc
from pipelines.evaluation.charts import axes_of, svg
from pipelines.evaluation.document import write_document
from pipelines.evaluation.experiment_view import ExperimentView
from pipelines.experiments.verdict import SHOWN_LEVEL
from pipelines.store import BlockScore, Experiment, Transition

GAIN, INTERVAL, LIMIT, HARM = "#1c2733", "#3b5bdb", "#1a7f45", "#b3261e"


def write_experiment_page(path: Path, title: str, view: ExperimentView, links: Mapping[str, str]) -> Path:
    """Write the page of an experiment and return its path. Needs no network.

    links  text → address of what belongs to it
    """
    linked = " · ".join(f"<a href='{escape(to, quote=True)}'>{escape(text)}</a>" for text, to in links.items())
    body = (
        f"<p>{escape(view.next_step())}</p><p>{linked}</p>"
        f"<h2>So far</h2>{_rows(_figures(view))}"
        f"{charts(view) if len(view.progress.e_values) else '<p>No block counts yet.</p>'}"
        f"<h2>Fixed at the start</h2>{_rows(_rules(view.experiment))}"
        f"{_guardrails(view)}{_trades(view.trades)}"
        f"<h2>What happened</h2>{_transitions(view.transitions)}{_void(view.blocks)}"
    )
    return write_document(path, title, body)


def _figures(view: ExperimentView) -> list[tuple[str, str]]:
    """Return the figures of the newest block in words."""
    e, f = view.experiment, view.figures
    of = f", of {e.max_blocks} at most" if e.max_blocks else ""
    rows = [
        ("state", view.state),
        ("blocks", f"{f['blocks']} count, {f['void']} void{of}"),
        ("outcomes that both arms scored", f"{f['outcomes']:,}"),
    ]
    if f["gain"] is not None:
        level = 1.0 - SHOWN_LEVEL
        rows.append((
            f"gain of {_named(e)}, {e.unit}",
            f"{f['gain']:+.4g}, {level:.0%} confidence sequence {f['low']:+.4g} to {f['high']:+.4g}",
        ))  # fmt: skip
        rows.append(("blocks clipped", f"{f['clipped_share']:.1%}"))
    if e.alpha > 0.0:
        if f["e_value"] is not None:
            rows.append(("e-value", f"{f['e_value']:.4g} of {1 / e.alpha:.4g} needed"))
            rows.append(
                (
                    "evidence against the least gain",
                    f"{f['futility']:.4g} of {1 / e.futility_alpha:.4g}" if e.futility_alpha else "not tested",
                )
            )
        rows.append(("alpha spent here", f"{e.alpha:.4g}; {view.alpha_left:.4g} left of the market year's budget"))
    return rows


def _rules(e: Experiment) -> list[tuple[str, str]]:
    """Return what was fixed at the start in words."""
    rows = [
        ("first block", f"{e.begun:%Y-%m-%d %H:%M} UTC, market time"),
        ("block", f"{e.horizons} horizons of {e.horizon_s / 3600:g} h, and one left out"),
        ("block means are clipped to", f"±{e.bound:g} {e.unit}"),
    ]
    if e.alpha > 0.0:
        rows.append(
            ("bound measured on", f"{e.evidence.get('rows')}, {e.evidence.get('blocks')} blocks of the gate's rows")
        )
        rows.append(
            ("least gain", f"{e.least_gain:.3g} {e.unit}, of a family's skill of {e.evidence.get('skill', 0.0):.3g}")
        )
        rows.append(("hypothesis", f"version {e.challenger} loses less than version {e.champion} on the same outcomes"))
    if ramp := e.evidence.get("ramp"):
        steps = [
            f"{ramp[f'{stage}_weight']:.0%} of symbols and blocks for {ramp[f'{stage}_blocks']} blocks ({stage})"
            for stage in ("canary", "split")
            if ramp[f"{stage}_blocks"]
        ]
        rows.append(("after a win it decides", ", then ".join([*steps, "everything"])))
    rows.append(("symbols", ", ".join(e.evidence.get("symbols", []))))
    return rows


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    """Return pairs as a table."""
    return (
        "<table>"
        + "".join(f"<tr><td class=whole>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
    )


def _transitions(transitions: Sequence[Transition]) -> str:
    """Return the table of the states."""
    rows = "".join(
        f"<tr><td class=whole>{utc(t.as_of_s):%Y-%m-%d %H:%M}</td><td>{escape(t.state)}</td><td>{escape(t.actor)}</td>"
        f"<td>{escape(t.reason)}</td></tr>"
        for t in transitions
    )
    return f"<table><tr><th>market time, UTC</th><th>state</th><th>by</th><th>why</th></tr>{rows}</table>"


def _guardrails(view: ExperimentView) -> str:
    """Return the table of the guardrails; nothing of a standing arm, which decides nothing."""
    if view.experiment.alpha <= 0.0:
        return ""
    rows = "".join(
        f"<tr><td>{g['metric']}</td><td>{escape(g['window'])}</td><td>{g['of']}</td>"
        f"<td class=number>{g['limit']:g}</td>"
        f"<td class=number>{'in the service' if g['value'] is None else format(g['value'], '+.3g')}</td>"
        f"<td class=number>{'–' if g['e_value'] is None else format(g['e_value'], '.3g')}</td>"
        f"<td>{escape(g['tripped'] or 'no')}</td></tr>"
        for g in view.guardrails
    )
    e = view.experiment
    watched = f"version {e.champion}, on probation" if e.is_probation else f"version {e.challenger}"
    head = "".join(f"<th>{name}</th>" for name in ("guardrail", "looks at", "of", "limit", "now", "e-value", "tripped"))
    return f"<h2>Guardrails of {escape(watched)}</h2><table><tr>{head}</tr>{rows}</table>"


def _trades(trades: Sequence[JsonObject]) -> str:
    """Return the table of what was traded since it began; nothing without a trade."""
    if not trades:
        return ""
    rows = "".join(
        f"<tr><td>{escape(t['arm'])}</td><td class=number>{t['trades']:,}</td>"
        f"<td class=number>{t['net_bps']:+.2f}</td></tr>"
        for t in trades
    )
    head = "<tr><th>decided by</th><th class=number>trades</th><th class=number>mean net bps</th></tr>"
    says = "Described, not tested: arms share account and limits. Only losses decide."
    return f"<h2>What the policy made of it</h2><p>{says}</p><table>{head}{rows}</table>"


def _void(blocks: Sequence[BlockScore]) -> str:
    """Return the table of the blocks that do not count; nothing without one."""
    void = [block for block in blocks if block.mean is None]
    if not void:
        return ""
    rows = "".join(
        f"<tr><td class=number>{b.number}</td><td class=whole>{utc(b.start_s):%Y-%m-%d %H:%M}</td>"
        f"<td>{escape(b.void)}</td></tr>"
        for b in void
    )
    return (
        f"<h2>Void blocks</h2><table><tr><th class=number>block</th><th>from, UTC</th><th>why</th></tr>{rows}</table>"
    )


def _named(e: Experiment) -> str:
    """Return the challenger in words: a version, or a standing arm by its name."""
    return f"version {e.challenger}" if e.alpha > 0.0 else e.challenger


def charts(view: ExperimentView) -> str:
    """Return the gain with its confidence sequence and the e-values, over the blocks that count."""
    e, found = view.experiment, view.progress
    means: Floats = np.array([b.mean for b in view.blocks if b.mean is not None])
    at = np.arange(1, len(means) + 1)
    tested = e.alpha > 0.0
    figure, axes = axes_of(1, 2 if tested else 1, 3.2)
    gain = axes[0, 0]
    gain.plot(at, np.clip(means, -e.bound, e.bound), ".", color=GAIN, alpha=0.5, label="block mean")
    gain.fill_between(at, found.low, found.high, color=INTERVAL, alpha=0.2, label="confidence sequence")
    gain.plot(at, np.cumsum(np.clip(means, -e.bound, e.bound)) / at, color=INTERVAL, label="mean so far")
    gain.axhline(0.0, color=GAIN, linewidth=0.6)
    gain.set_title(f"gain of {_named(e)}, {e.unit}")
    gain.set_xlabel("blocks that count")
    gain.xaxis.get_major_locator().set_params(integer=True)
    gain.legend()
    if tested:
        wealth = axes[0, 1]
        wealth.semilogy(at, found.e_values, color=INTERVAL, label="e-value: it is better")
        wealth.axhline(1.0 / e.alpha, color=LIMIT, linestyle="--", linewidth=0.8, label="wins here")
        if e.futility_alpha > 0.0:
            wealth.semilogy(at, found.futility, color=HARM, label="e-value: it gains less than the least gain")
            wealth.axhline(1.0 / e.futility_alpha, color=HARM, linestyle=":", linewidth=0.8, label="stops here")
        wealth.set_title("evidence")
        wealth.set_xlabel("blocks that count")
        wealth.xaxis.get_major_locator().set_params(integer=True)
        wealth.legend()
    return svg(figure)
