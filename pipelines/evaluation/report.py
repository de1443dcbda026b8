"""What a candidate scored, as figures and as a page: the same numbers the gate reads, each with n, interval, cost."""

import json
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Estimate, Floats, Verdict
from pipelines.evaluation.metrics import (
    auc,
    brier_losses,
    expected_calibration_error,
    lift_bps,
    log_losses,
    mean_estimate,
    most_confident,
    statistic_estimate,
)
from pipelines.settings import Params


def summarise(folder: Path, params: Params) -> dict[str, Any]:
    """Figures of the family whose stage output is `folder` (`oof.npz`, `fit.json`)."""
    with np.load(folder / "oof.npz", allow_pickle=False) as f:
        y, gross = f["y"], f["gross_bps"]
        rivals = {"model": f["p"], **{k.removeprefix("baseline_"): f[k] for k in f.files if k.startswith("baseline_")}}
    draws, seed, cost = params.gate.bootstrap, params.seed, params.costs.round_trip_bps
    n = len(y)
    table: dict[str, Any] = {}
    for name, p in rivals.items():
        table[name] = {
            "log_loss": _dict(mean_estimate(log_losses(p, y), draws, seed)),
            "brier": _dict(mean_estimate(brier_losses(p, y), draws, seed)),
            "ece": expected_calibration_error(p, y),
        }
        if name != "base_rate":  # one number for everybody ranks nothing
            table[name]["auc"] = _dict(statistic_estimate(lambda rows, p=p: auc(p[rows], y[rows]), n, draws // 4, seed))  # type: ignore[misc]
        if name == "model":
            table[name]["selective"] = selective(p, y, gross, params)
    own = log_losses(rivals["model"], y)
    gains = {k: _dict(mean_estimate(log_losses(p, y) - own, draws, seed)) for k, p in rivals.items() if k != "model"}
    raw = mean_estimate(gross - cost, draws, seed, cost)
    return {
        "n": n,
        "hit_rate": float(y.mean()),
        "cost_bps": cost,
        "rivals": table,
        "log_loss_gain_over": gains,
        "every_signal_net_bps": _dict(raw),
        **{k: v for k, v in json.loads((folder / "fit.json").read_text()).items() if k not in ("columns",)},
    }


def selective(p: Floats, y: Floats, gross: Floats, params: Params) -> dict[str, Any]:
    """Hit rate, net bps and lift of the most confident 5, 10, 20 and 50 %."""
    draws, seed, cost = params.gate.bootstrap, params.seed, params.costs.round_trip_bps
    answer = {}
    for coverage in (0.05, 0.10, 0.20, 0.50):
        chosen = most_confident(p, coverage)
        answer[f"{coverage:.0%}"] = {
            "hit_rate": _dict(mean_estimate(y[chosen], draws, seed)),
            "net_bps": _dict(mean_estimate(gross[chosen] - cost, draws, seed, cost)),
            "lift_bps": _dict(statistic_estimate(lift_bps(p, gross, coverage), len(y), draws // 2, seed, cost)),
        }
    return answer


def flat_metrics(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The nested figures as MLflow metrics: `rivals.model.auc.low` and so on; what is not a number is left out."""
    flat: dict[str, float] = {}
    for key, value in figures.items():
        name = f"{prefix}{key.replace('%', 'pct')}"
        if isinstance(value, dict):
            flat |= flat_metrics(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            flat[name] = float(value)
    return flat


def figure_rows(figures: dict[str, Any], traded: dict[str, Any]) -> list[list[str]]:
    """[figure, value, 95 % interval, n] of a candidate, for people: beside its baselines, then what its trades made.

    figures  of `summarise`; traded  of the backtest with the live policy
    """

    def row(name: str, e: dict[str, Any], digits: int = 4) -> list[str]:
        if e["value"] is None:
            return [name, "–", "nothing to measure", f"{e['n']:,}"]
        known = e["low"] is not None and e["high"] is not None
        interval = f"[{e['low']:.{digits}f}, {e['high']:.{digits}f}]" if known else "too few rows"
        return [name, f"{e['value']:.{digits}f}", interval, f"{e['n']:,}"]

    cost, own = figures["cost_bps"], figures["rivals"]["model"]
    chosen = own["selective"]["20%"]
    gains = figures["log_loss_gain_over"]
    return [
        row("AUC", own["auc"], 3),
        row("log loss", own["log_loss"]),
        *(row(f"log loss gain over {name.replace('_', ' ')}", gains[name]) for name in sorted(gains)),
        row("hit rate, most confident 20 %", chosen["hit_rate"], 3),
        row("lift over every signal, bps (20 %)", chosen["lift_bps"], 2),
        row(f"net bps a trade after {cost:g} bps (20 %)", chosen["net_bps"], 2),
        row(f"net bps, every signal, after {cost:g} bps", figures["every_signal_net_bps"], 2),
        row(f"net bps of the policy's trades, after {cost:g} bps", traded["net_bps"], 2),
        row("emissions a week in the backtest", traded["emissions_per_week"], 1),
    ]


def write_page(path: Path, verdict: Verdict, figures: dict[str, Any], folder: Path, title: str) -> None:
    """The evidence as one self-contained page: verdict, checks, reliability, cumulative result. Needs no network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    with np.load(folder / "oof.npz", allow_pickle=False) as f:
        p, y, gross, known = f["p"], f["y"], f["gross_bps"], f["known"]
    cost = figures["cost_bps"]
    figure = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=("Reliability (10 equal bins)", "Cumulative net result of the most confident 20 %, bps"),
    )
    parts = np.array_split(np.argsort(p, kind="stable"), 10)
    said, came = [float(p[k].mean()) for k in parts], [float(y[k].mean()) for k in parts]
    error = [1.96 * float(np.sqrt(max(y[k].mean() * (1 - y[k].mean()), 1e-9) / len(k))) for k in parts]
    figure.add_trace(
        go.Scatter(
            x=said, y=came, error_y={"type": "data", "array": error}, mode="markers+lines", name="hit rate ± 95 %"
        ),
        1,
        1,
    )
    span = [min(said + came), max(said + came)]
    figure.add_trace(go.Scatter(x=span, y=span, mode="lines", line={"dash": "dot"}, name="perfect"), 1, 1)
    figure.update_xaxes(title_text="probability said", row=1, col=1)
    figure.update_yaxes(title_text="share that hit the target", row=1, col=1)
    chosen = most_confident(p, 0.20)
    when = (known[chosen] * 1000).astype("datetime64[ms]")
    figure.add_trace(go.Scatter(x=when, y=np.cumsum(gross[chosen] - cost), mode="lines", name="chosen 20 %, net"), 1, 2)
    figure.add_trace(
        go.Scatter(
            x=(known * 1000).astype("datetime64[ms]"), y=np.cumsum(gross - cost), mode="lines", name="every signal, net"
        ),
        1,
        2,
    )
    figure.update_layout(template="plotly_white", height=420, margin={"t": 50, "l": 50, "r": 20, "b": 40})
    rows = "".join(
        f"<tr class='{'ok' if c.passed else 'no'}'><td>{'✓' if c.passed else '✗'}</td><td>{escape(c.name)}</td>"
        f"<td>{_number(c.value)}</td><td>{'' if c.low is None else f'[{_number(c.low)}, {_number(c.high)}]'}</td>"
        f"<td>{escape(c.threshold)}</td><td>{c.n:,}</td>"
        f"<td>{escape(c.detail)}</td></tr>"
        for c in verdict.checks
    )
    word = "passed" if verdict.passed else "refused"
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;color:#1c2733}"
        "table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:left;"
        "border-bottom:1px solid #e3e8ee}.ok td:first-child{color:#1a7f45}.no td:first-child{color:#b3261e}"
        ".passed{color:#1a7f45}.refused{color:#b3261e}</style>"
        f"<h1>{escape(title)}</h1><p>The gate says: <b class='{word}'>{word}</b>. {figures['n']:,} out-of-fold events, "
        f"hit rate {figures['hit_rate']:.3f}, round trip {cost:g} bps. Intervals are 95 %, moving-block bootstrap.</p>"
        f"<table><tr><th></th><th>check</th><th>value</th><th>interval</th><th>required</th><th>n</th><th></th></tr>{rows}</table>"
        f"{figure.to_html(full_html=False, include_plotlyjs=True)}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _dict(estimate: Estimate) -> dict[str, Any]:
    return {k: v for k, v in asdict(estimate).items() if v is not None}
