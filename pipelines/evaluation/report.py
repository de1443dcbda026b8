"""A candidate's figures, as JSON and as a page: the numbers the gate reads, each with n, interval and cost."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Arrays, Bools, Estimate, Floats, JsonObject, Verdict, json_ready
from pipelines.costs import Costs, costs_of, venue_of
from pipelines.evaluation import importance
from pipelines.evaluation.calibration import calibration_error
from pipelines.evaluation.charts import axes_of, svg, thinned
from pipelines.evaluation.deflation import sharpe_of
from pipelines.evaluation.detectable import ONE_BP, Detectable, detectable
from pipelines.evaluation.document import write_document
from pipelines.evaluation.intervals import mean_of
from pipelines.evaluation.metrics import (
    auc_estimate,
    chosen,
    lift_estimate,
    lift_of,
    mean_estimate,
    mean_of_chosen,
    ranks_within,
)
from pipelines.evaluation.verdicts import MARKS, state_of, verdict_state
from pipelines.models.directional_ensemble import ensemble_losses
from pipelines.models.trained_on import symbols_of
from pipelines.params import Params
from pipelines.renamed_keys import current_names

# what a family would answer without a model: its gain over this is its own skill
SIMPLEST = {"validator": "base_rate", "pattern": "prevalence", "predictor": "base_rate", "regime": "constant"}


def read_oof(folder: Path) -> Arrays:
    """Return every array of a family's `oof.npz` by name; `more_<name>` of earlier releases as `extra_<name>`."""
    with np.load(folder / "oof.npz", allow_pickle=False) as f:
        return {re.sub("^more_", "extra_", name): f[name] for name in f.files}


def arrays_with_prefix(oof: Arrays, prefix: str) -> dict[str, Floats]:
    """Return the arrays whose name starts with `prefix`, by the rest of the name."""
    return {name.removeprefix(prefix): values for name, values in oof.items() if name.startswith(prefix)}


def symbols_in(oof: Arrays) -> tuple[str, ...]:
    """Return the names of the markets of out-of-fold rows; none of a release before 0.11, whose rows are of one."""
    return tuple(oof["symbols"].tolist()) if "symbols" in oof else ()


def shared_moments(oof: Arrays) -> Floats | None:
    """Return (n,) when each row was known, where rows of several markets share moments; None of one market."""
    return oof["known"] if len(symbols_in(oof)) > 1 else None


def confident_rows(oof: Arrays, coverage: float) -> Bools:
    """Return (n,) whether a row is among the most confident `coverage` share, by the threshold of its fold's model.

    Evidence of a release that stored no `rank` is ranked inside its fold, or as one fold.
    """
    if "rank" in oof:
        return chosen(oof["rank"], coverage)
    return chosen(ranks_within(oof["p"], oof.get("fold", np.zeros(len(oof["p"])))), coverage)


def paid_bps(oof: Arrays, round_trip_bps: float) -> Floats:
    """Return (n,) what the trade of each row cost, in bps; rows of a release before 0.8.0 all cost one round trip."""
    return oof.get("extra_cost_bps", np.full(len(oof["y"]), round_trip_bps))


def summarise(folder: Path, params: Params) -> JsonObject:
    """Return the figures of the family whose stage output is `folder` (`oof.npz`, `fit.json`)."""
    oof, fit = read_oof(folder), current_names("fit figures", json.loads((folder / "fit.json").read_text()))
    schema = json.loads((folder / "bundle" / "schema.json").read_text())
    costs = market_costs(schema, params)
    y, p, gross, when = oof["y"], oof["p"], oof.get("extra_gross_bps"), shared_moments(oof)
    paid = paid_bps(oof, next(iter(costs.values()))[0].round_trip_bps)
    cost = float(paid.mean())
    losses = {"model": oof["loss"], **arrays_with_prefix(oof, "loss_")}
    probabilities = {"model": p, **arrays_with_prefix(oof, "baseline_"), **arrays_with_prefix(oof, "member_")}
    figures: JsonObject = {
        "n": len(y),
        "cost_bps": cost,
        "costs": costs_text(costs, oof),
        "loss": {name: _dict(mean_estimate(loss, known=when)) for name, loss in losses.items()},
        "gain_over": {
            name: _dict(mean_estimate(loss - losses["model"], known=when))
            for name, loss in losses.items()
            if name != "model"
        },
        "by_symbol": by_symbol(oof, fit["family"]),
        "detectable": {name: each.to_dict() for name, each in smallest_effects(oof, fit, params).items()},
        **{k: v for k, v in fit.items() if k != "columns"},
    }
    if y.ndim == 2:
        present = oof["extra_direction"] != 0.0
        figures["by_class"] = {
            name: _of_class(p[:, c], y[:, c], probabilities["prevalence"][:, c], present[:, c], when)
            for c, name in enumerate(fit["classes"])
        }
    elif set(np.unique(y)) <= {0.0, 1.0}:
        figures["hit_rate"] = float(y.mean())
        figures["calibration_error"] = _dict(calibration_error(p, y, when).error)
        figures["auc"] = {
            name: _dict(auc_estimate(q, y, oof.get("fold"), when))
            for name, q in probabilities.items()
            if name != "base_rate" and np.isfinite(q).all()  # a single value ranks nothing
        }
    if weights := schema.get("ensemble"):
        member_losses = ensemble_losses(oof, y, weights)
        figures["ensemble_loss"] = {
            name: _dict(mean_estimate(loss, known=when)) for name, loss in member_losses.items()
        }
    if gross is not None and y.ndim == 1:
        figures["selective"] = selective(oof, paid, params)
        figures["every_row_net_bps"] = _dict(mean_estimate(gross - paid, cost, when))
        # of the lift, a row: the gate of later candidates reads how these ratios vary
        taken = confident_rows(oof, params.gate.coverage)
        figures["lift_sharpe"] = _dict(sharpe_of(gross - gross.mean(), taken, when).estimate(0.0))
    return figures


def market_costs(schema: Mapping[str, Any], params: Params) -> dict[str, tuple[Costs, bool]]:
    """Return market → its costs and whether its history has funding rates, of a bundle's schema of any release."""
    markets = schema.get("markets") or {symbols_of(schema)[0] if symbols_of(schema) else "": schema}
    return {
        name: (costs_of(params.costs, *venue_of(facts)), bool(facts.get("has_funding")))
        for name, facts in markets.items()
    }


def costs_text(costs: Mapping[str, tuple[Costs, bool]], oof: Arrays) -> str:
    """Return what stands of costs on every figure with one: of each market, if they differ."""
    spread = oof.get("extra_spread_known")
    texts: dict[str, list[str]] = {}
    names = symbols_in(oof)
    for name, (each, funded) in costs.items():
        of = oof["symbol"] == names.index(name) if len(names) > 1 and name in names else slice(None)
        texts.setdefault(each.describe(None if spread is None else spread[of], funded), []).append(name)
    return next(iter(texts)) if len(texts) == 1 else "; ".join(f"{', '.join(of)}: {text}" for text, of in texts.items())


def by_symbol(oof: Arrays, family: str) -> JsonObject:
    """Return market → n, loss and the gain over the simplest baseline, of that market's rows; empty of old evidence."""
    found: JsonObject = {}
    simplest = arrays_with_prefix(oof, "loss_").get(SIMPLEST.get(family, ""))
    for code, name in enumerate(symbols_in(oof)):
        of = oof["symbol"] == code
        if not of.any():
            continue
        loss = oof["loss"][of]
        found[name] = {"n": int(of.sum()), "loss": _dict(mean_estimate(loss))}
        if simplest is not None:
            found[name]["gain_over"] = {SIMPLEST[family]: _dict(mean_estimate(simplest[of] - loss))}
    return found


def smallest_effects(oof: Arrays, fit: Mapping[str, Any], params: Params) -> dict[str, Detectable]:
    """Return what these rows could show: `loss`, the gain over the simplest baseline; `bps` of a family with trades."""
    found, when, n, family = {}, shared_moments(oof), len(oof["loss"]), fit["family"]
    simplest = arrays_with_prefix(oof, "loss_").get(SIMPLEST.get(family, ""))
    if simplest is not None:
        gain = mean_of(simplest - oof["loss"], when)
        found["loss"] = detectable(gain, params.gate.least_gain.get(family, 0.0), n, fit["loss_name"])
    gross = oof.get("extra_gross_bps")
    if gross is not None and oof["y"].ndim == 1:
        taken = confident_rows(oof, params.gate.coverage)
        found = {"bps": detectable(lift_of(taken, gross, when), ONE_BP, n, "bps"), **found}
    return found


def _of_class(p: Floats, y: Floats, prevalence: Floats, present: Bools, known: Floats | None) -> JsonObject:
    """Return how often one class is present, and of those rows the share that played out, the gain and calibration."""
    p, y, prevalence = p[present], y[present], prevalence[present]
    when = None if known is None else known[present]
    return {
        "present": int(present.sum()),
        "share": float(y.mean()) if len(y) else None,
        "brier_gain_over_prevalence": _dict(mean_estimate((prevalence - y) ** 2 - (p - y) ** 2, known=when)),
        "calibration_error": _dict(calibration_error(p, y, when).error),
    }


def selective(oof: Arrays, paid: Floats, params: Params) -> JsonObject:
    """Return hit rate, net bps and lift of the most confident 5, 10, 20 and 50 %; paid (n,) cost of each row, bps."""
    gross, when, by_coverage = oof["extra_gross_bps"], shared_moments(oof), {}
    for coverage in (0.05, 0.10, 0.20, 0.50):
        taken = confident_rows(oof, coverage)
        by_coverage[f"{coverage:.0%}"] = {
            "share": float(taken.mean()),  # what a threshold of the past chose of the later rows
            "hit_rate": _dict(mean_of_chosen(oof["y"], taken, known=when)),
            "net_bps": _dict(
                mean_of_chosen(gross - paid, taken, float(paid[taken].mean()) if taken.any() else None, when)
            ),
            "lift_bps": _dict(lift_estimate(taken, gross, 0.0, when)),
            "lift_after_cost_bps": _dict(lift_estimate(taken, gross - paid, float(paid.mean()), when)),
        }
    return by_coverage


def flat_metrics(figures: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """Return nested figures as MLflow metrics (`loss.model.low`, …), without values that are not finite numbers."""
    flat: dict[str, float] = {}
    for key, value in figures.items():
        name = f"{prefix}{key.replace('%', 'pct')}"
        if isinstance(value, dict):
            flat |= flat_metrics(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            flat[name] = float(value)
    return flat


def figure_rows(figures: JsonObject, traded: JsonObject | None) -> list[list[str]]:
    """Return rows [figure, value, 95 % interval, n] of a candidate: against its baselines, then of its trades.

    figures  of `summarise`, also of an earlier release
    traded   of the backtest with the live policy, None for a family without trades
    """
    figures = current_names("evaluation figures", figures)

    def row(name: str, e: Mapping[str, Any], digits: int = 4) -> list[str]:
        """Return the row of one estimate."""
        if e["value"] is None:
            return [name, "–", "nothing to measure", f"{e['n']:,}"]
        known = e["low"] is not None and e["high"] is not None
        interval = f"[{e['low']:.{digits}f}, {e['high']:.{digits}f}]" if known else "too few rows"
        return [name, f"{e['value']:.{digits}f}", interval, f"{e['n']:,}"]

    cost, unit = figures["cost_bps"], figures["loss_name"]
    rows = [row(unit, figures["loss"]["model"])]
    rows += [row(f"gain over {name.replace('_', ' ')}", e) for name, e in sorted(figures["gain_over"].items())]
    if len(markets := figures.get("by_symbol", {})) > 1:
        rows += [
            row(f"{name}: gain over {first.replace('_', ' ')}", e)
            for name, each in markets.items()
            for first, e in each.get("gain_over", {}).items()
        ]
    rows += [row(f"{unit} of {name.replace('_', ' ')}", e) for name, e in figures.get("ensemble_loss", {}).items()]
    rows += [
        row("AUC" if name == "model" else f"AUC of {name.replace('_', ' ')}", e, 3)
        for name, e in figures.get("auc", {}).items()
        if name in ("model", "logistic", "ensemble")
    ]
    rows += [
        row(f"Brier gain over prevalence: {name.replace('_', ' ')}", e["brier_gain_over_prevalence"])
        for name, e in figures.get("by_class", {}).items()
    ]
    if "selective" in figures:
        chosen = figures["selective"]["20%"]
        chosen_cost = chosen["net_bps"].get("cost_bps", cost)
        after = chosen.get("lift_after_cost_bps")  # not of a release before 0.8.0, where one cost cancelled in it
        rows += [
            row("hit rate, most confident 20 %", chosen["hit_rate"], 3),
            row("lift over every row, bps (20 %)", chosen["lift_bps"], 2),
            *([row("lift over every row after cost, bps (20 %)", after, 2)] if after else []),
            row(f"net bps a trade after {chosen_cost:.3g} bps (20 %)", chosen["net_bps"], 2),
            row(f"net bps, every row, after {cost:.3g} bps", figures["every_row_net_bps"], 2),
        ]
    rows += [
        [f"smallest effect to be seen, {e['unit']}", "–" if e["least"] is None else f"{e['least']:.2g}", e["line"],
         f"{e['n']:,}"]
        for e in figures.get("detectable", {}).values()
    ]  # fmt: skip
    rows.append(["reselection of columns", figures["reselection"].partition(":")[0], "", f"{figures['n']:,}"])
    if traded is not None:
        rows += [
            row(f"net bps of the policy's trades, after {_paid(traded, cost):.3g} bps", traded["net_bps"], 2),
            row("emissions a week in the backtest", traded["emissions_per_week"], 1),
        ]
    if "costs" in figures:  # not of a release before 0.8.0
        rows.append(["costs, bps a round trip", f"{cost:.3g}", figures["costs"], f"{figures['n']:,}"])
    return rows


def _paid(traded: JsonObject, cost: float) -> float:
    """Return the mean cost of the trades of a backtest, that of every row where it names none (0.5.0, no trade)."""
    known = traded["net_bps"].get("cost_bps")
    return cost if known is None else float(known)


def write_page(path: Path, verdict: Verdict, figures: JsonObject, folder: Path, title: str) -> None:
    """Write the evidence as one self-contained page: verdict, checks, charts, column importance. Needs no network.

    The charts: reliability (for binary outcomes), and the cumulative loss saved against each baseline (for trades
    their cumulative result).
    """
    oof, cost = read_oof(folder), figures["cost_bps"]
    y, p, when = oof["y"], oof["p"], (oof["known"] * 1000).astype("datetime64[ms]")
    binary, trades = bool(np.isin(y, (0.0, 1.0)).all()), "selective" in figures
    second = "Cumulative net result of the most confident 20 %, bps" if trades else "Loss saved against the baselines"
    figure, ((first, last),) = axes_of(1, 2, 4.0)
    if binary:
        _reliability(first, p.ravel(), y.ravel())
    else:
        thin = thinned(len(p))
        first.stackplot(when[thin], p[thin].T, labels=figures["classes"], linewidth=0)
        first.set_title("Predictions over time")
        first.legend(loc="lower left", ncols=3)
    if trades:
        net, confident = oof["extra_gross_bps"] - paid_bps(oof, cost), np.flatnonzero(confident_rows(oof, 0.20))
        for taken, name in ((confident, "chosen 20 %, net"), (np.arange(len(p)), "every row, net")):
            thin = thinned(len(taken))
            last.plot(when[taken][thin], np.cumsum(net[taken])[thin], label=name, linewidth=1.2)
    else:
        for name, loss in arrays_with_prefix(oof, "loss_").items():
            thin, saved = thinned(len(loss)), np.cumsum(loss - oof["loss"])
            last.plot(when[thin], saved[thin], label=f"against {name.replace('_', ' ')}", linewidth=1.2)
    last.axhline(0.0, color="#5c6b7a", linewidth=0.8)
    last.set_title(second)
    if len(last.lines) > 1:
        last.legend(loc="best")
    rows = "".join(
        f"<tr><td class='{'good' if c.passed else 'bad'} whole'>{MARKS[state_of(c.passed)]} {state_of(c.passed)}</td>"
        f"<td>{escape(c.name)}</td>"
        f"<td>{_number(c.value)}</td><td>{'' if c.low is None else f'[{_number(c.low)}, {_number(c.high)}]'}</td>"
        f"<td>{escape(c.threshold)}</td><td>{_number(c.detectable)}</td><td>{c.n:,}</td>"
        f"<td>{escape(c.detail)}</td></tr>"
        for c in verdict.checks
    )
    result = verdict_state(verdict)
    effects = (e["line"] for e in figures.get("detectable", {}).values())
    about = (
        f"{figures['n']:,} out-of-fold rows{_of_markets(figures)}, losses in {escape(figures['loss_name'])}, "
        f"round trip {cost:.3g} bps: {escape(figures['costs'])}. "
        + " ".join(f"{escape(line[:1].upper() + line[1:])}." for line in effects)
    )
    write_document(
        path,
        title,
        f"<p>Gate: <b class='{'good' if verdict.passed else 'bad'}'>{result}</b>. {about} "
        "Intervals are 95 %, t on 15 to 30 long averages. Detectable: a gain that so many rows show in 95 of 100 "
        "cases. Too few: the rows show neither what is required nor its absence, which is no promotion either."
        "</p>"
        "<table><tr><th></th><th>check</th><th>value</th><th>interval</th><th>required</th><th>detectable</th><th>n</th>"
        "<th></th></tr>"
        f"{rows}</table>{_market_table(figures)}{svg(figure)}"
        + importance.section(json.loads((folder / "importance.json").read_text())),
    )


def _of_markets(figures: JsonObject) -> str:
    """Return the markets of pooled rows for the page; nothing of one market."""
    markets = figures.get("by_symbol", {})
    return f" of {', '.join(escape(name) for name in markets)}" if len(markets) > 1 else ""


def _market_table(figures: JsonObject) -> str:
    """Return HTML with the figures of each market; nothing of one market, whose figures are the pooled ones."""
    markets = figures.get("by_symbol", {})
    if len(markets) < 2:
        return ""
    lines = ""
    for name, each in markets.items():
        for first, e in each.get("gain_over", {}).items():
            known = e["low"] is not None and e["high"] is not None
            bounds = f"[{_number(e['low'])}, {_number(e['high'])}]" if known else "too few rows"
            lines += (
                f"<tr><td>{escape(name)}</td><td>{each['n']:,}</td><td>{_number(each['loss']['value'])}</td>"
                f"<td>over {escape(first.replace('_', ' '))}: {_number(e['value'])}</td><td>{bounds}</td></tr>"
            )
    return (
        "<h2>By market</h2><table><tr><th>market</th><th>n</th><th>loss</th><th>gain</th><th>interval</th></tr>"
        f"{lines}</table>"
    )


def _reliability(axis: Any, p: Floats, y: Floats) -> None:
    """Draw the observed share against the mean predicted probability of ten equal bins."""
    parts = np.array_split(np.argsort(p, kind="stable"), 10)
    predicted, observed = [float(p[k].mean()) for k in parts], [float(y[k].mean()) for k in parts]
    error = [1.96 * float(np.sqrt(max(y[k].mean() * (1 - y[k].mean()), 1e-9) / len(k))) for k in parts]
    axis.errorbar(predicted, observed, yerr=error, fmt="o-", markersize=4, label="observed share ± 95 %")
    span = [min(predicted + observed), max(predicted + observed)]
    axis.plot(span, span, linestyle=":", label="perfect")
    axis.set(title="Reliability (10 equal bins)", xlabel="predicted probability", ylabel="observed share")
    axis.legend(loc="upper left")


def _number(value: float | None) -> str:
    """Return a number with four digits, a dash if it is unknown."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _dict(estimate: Estimate) -> JsonObject:
    """Return an estimate by name, JSON-ready: None for a value or a bound that is not known, no cost without one."""
    return {k: v for k, v in json_ready(asdict(estimate)).items() if k != "cost_bps" or v is not None}
