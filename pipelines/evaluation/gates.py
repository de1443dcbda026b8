"""Y3, the gate: is the candidate better, on rows outside its training, than the champion and than simple baselines?

Every check is a line with its value, 95 % interval, threshold and n, and what so many rows could show at all. It has
one of three states: passed; refused, where the rows show that the candidate lacks what is required; or too few, where
they show neither, with the rows it would take. Only a candidate that passes every check is promoted. The gate measures
whether the model adds skill; the policy decides for every single decision whether a trade pays. Size and power of each
check: docs/results/power.md, docs/results/gate.md.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.contracts import Bools, Check, Estimate, Floats, Ints, Verdict
from pipelines.errors import UnknownName
from pipelines.evaluation.calibration import CalibrationError, calibration_error
from pipelines.evaluation.deflation import best_by_luck, deflated_sharpe, sharpe_of
from pipelines.evaluation.intervals import POWER, Measurement, holm, mean_of
from pipelines.evaluation.metrics import auc_of, chosen, lift_of, lift_of_spread, ranks_within
from pipelines.evaluation.report import SIMPLEST, arrays_with_prefix, read_oof, shared_moments, symbols_in
from pipelines.evaluation.verdicts import LEAK
from pipelines.models.losses import brier_losses
from pipelines.params import Params
from pipelines.renamed_keys import current_names
from pipelines.stage_outputs import read_timings


@dataclass(frozen=True, slots=True)
class Evidence:
    """Hold what the gate reads of a candidate. Rows are out-of-fold rows in time order.

    loss_name      name and unit of the loss
    classes        names of the columns of p
    loss           (n,) the candidate's losses; baseline_losses  name → (n,) losses of a baseline on the same rows
    p, y           (n,) or (n, classes): the candidate's out-of-fold probability, the outcome
    fold           (n,) number of the fold whose model predicted the row; None = one model predicted all
    rank           (n,) share of that model's own calibration predictions below p, known before the row; None = the
                   share of its fold's predictions, which is known after them
    present        (n, classes) whether a class occurs in a row: elsewhere p and y are 0 by rule; None = all do
    baselines      name → probabilities on the same rows, of the baselines that have one
    gross_bps      (n,) return of each row's trade before cost; None for a family without trades
    cost_bps       (n,) what that trade cost; None = every row the same, which cancels in a lift
    champion_loss  (n,) the champion's losses on the same rows, NaN where the row was in its training or it abstained;
                   None without a champion
    paired_loss    (n,) losses of the candidate's recipe fitted up to the end of the champion's data, on the rows after
                   it, NaN elsewhere: what is compared with champion_loss. None = `loss`
    trials         number of candidates of this family ever tried, this one included
    trial_sharpes  Sharpe ratios of the lift of those whose figures are stored, per row
    parity_gap     largest difference between the exported and the native model
    latency_ms     median time of one row through the exported model; NaN = unknown
    schema_coverage, novel_share   shares of rows with all columns, and of the newest rows beyond the novelty limit
    single_column_auc  {column: AUC} of the column that ranks the outcome best by itself
    symbol     (n,) code of each row's market in `symbols`; None = all rows are of one
    known      (n,) when each row was known, ascending, where several markets share moments; None = each row is one
    incomparable  why the champion in service cannot be compared with the candidate; empty where it can, or without one
    """

    family: str
    loss_name: str
    classes: tuple[str, ...]
    loss: Floats
    baseline_losses: Mapping[str, Floats]
    p: Floats
    y: Floats
    champion_loss: Floats | None
    trials: int
    parity_gap: float
    latency_ms: float
    schema_coverage: float
    novel_share: float
    baselines: Mapping[str, Floats] = field(default_factory=dict)
    gross_bps: Floats | None = None
    cost_bps: Floats | None = None
    single_column_auc: Mapping[str, float] = field(default_factory=dict)
    paired_loss: Floats | None = None
    fold: Ints | None = None
    rank: Floats | None = None
    present: Bools | None = None
    trial_sharpes: Sequence[float] = ()
    symbols: tuple[str, ...] = ()
    symbol: Ints | None = None
    known: Floats | None = None
    incomparable: str = ""

    def moments(self, rows: Bools) -> Floats | None:
        """Return when the chosen rows (n,) were known, None where each row is a moment of its own."""
        return None if self.known is None else self.known[rows]


def evidence_of(
    folder: Path,
    champion_loss: Floats | None,
    trials: int,
    paired_loss: Floats | None = None,
    trial_sharpes: Sequence[float] = (),
    incomparable: str = "",
) -> Evidence:
    """Return the evidence in a family's stage output `folder` (`oof.npz`, `fit.json`)."""
    fit, oof = current_names("fit figures", json.loads((folder / "fit.json").read_text())), read_oof(folder)
    direction = oof.get("extra_direction")
    return Evidence(
        family=fit["family"],
        loss_name=fit["loss_name"],
        classes=tuple(fit["classes"]),
        loss=oof["loss"],
        baseline_losses=arrays_with_prefix(oof, "loss_"),
        p=oof["p"],
        y=oof["y"],
        champion_loss=champion_loss,
        paired_loss=paired_loss,
        trials=trials,
        trial_sharpes=trial_sharpes,
        fold=oof.get("fold"),
        rank=oof.get("rank"),
        present=direction != 0.0 if direction is not None and direction.ndim == 2 else None,
        baselines=arrays_with_prefix(oof, "baseline_"),
        gross_bps=oof.get("extra_gross_bps"),
        cost_bps=oof.get("extra_cost_bps"),
        single_column_auc=fit.get("single_column_auc", {}),
        symbols=symbols_in(oof),
        symbol=oof.get("symbol"),
        known=shared_moments(oof),
        incomparable=incomparable,
        latency_ms=read_timings(folder)["latency_ms"],
        **{key: fit[key] for key in ("parity_gap", "schema_coverage", "novel_share")},
    )


FamilyChecks = Callable[[Evidence, Params], list[Check]]


def judge(evidence: Evidence, params: Params) -> Verdict:
    """Run every check of the family and return the verdict. Deterministic for the same evidence and params."""
    g, e = params.gate, evidence
    n = len(e.loss)
    checks = [_plain("rows", n >= g.min_events, float(n), f">= {g.min_events}", n)]
    if n < g.min_events or (e.y.ndim == 1 and len(np.unique(e.y)) < 2):
        checks.append(_unknown("skill", n, f"needs {g.min_events} out-of-fold rows of different outcomes"))
        return _verdict(e.family, checks)
    for name, loss in e.baseline_losses.items():
        gain, unit = mean_of(loss - e.loss, e.known), f"in {e.loss_name}"
        # the complex model must be better than the simpler logistic, by value: decision 0007
        checks.append(
            _skill(f"gain_over_{name}", gain, 0.0, unit, by_value=True)
            if name == "logistic"
            else _skill(f"gain_over_{name}", gain, least_gain(e, params), unit)
        )
    checks += each_market(e, params)
    for family_checks in CHECKS.get(e.family, ()):
        checks += family_checks(e, params)
    checks.append(
        _plain("export_parity", e.parity_gap <= g.max_parity_gap, e.parity_gap, f"<= {g.max_parity_gap:g}", n)
    )
    checks.append(quick(e, params))
    covered = e.schema_coverage >= g.min_schema_coverage
    checks.append(_plain("schema_coverage", covered, e.schema_coverage, f">= {g.min_schema_coverage}", n))
    familiar = e.novel_share <= g.max_novel_share
    checks.append(_plain("novel_share", familiar, e.novel_share, f"<= {g.max_novel_share}", n))
    if e.champion_loss is not None:
        checks.append(against_champion(e, params))
    if e.incomparable:
        detail = f"{e.incomparable}; a candidate replaces only a champion that it was compared with"
        checks.append(Check("compared_with_champion", False, None, None, None, "rows of a shared market", 0, detail))
    return _verdict(e.family, checks)


def quick(e: Evidence, params: Params) -> Check:
    """Check that a row takes no longer than allowed; unknown where what the fit took is gone."""
    allowed, n = params.gate.max_latency_ms, len(e.loss)
    if np.isnan(e.latency_ms):
        return _unknown("latency_ms", n, "what this fit took is gone from artifacts/timings; train it again")
    return _plain("latency_ms", e.latency_ms <= allowed, e.latency_ms, f"<= {allowed:g}", n)


def least_gain(e: Evidence, params: Params) -> float:
    """Return the smallest gain over a baseline that the gate is made to find, in the family's unit of loss.

    Raises  UnknownName for a family without one in gate.least_gain
    """
    if e.family not in params.gate.least_gain:
        known = ", ".join(params.gate.least_gain)
        raise UnknownName(f"no gate.least_gain for {e.family!r}; known: {known}. Add its smallest gain to params.yaml")
    return params.gate.least_gain[e.family]


def least_variance(e: Evidence, params: Params) -> float:
    """Return the variance of true chances whose gain in log loss over their mean s is `least_gain`.

    The gain is variance / (2 s (1 - s)) to second order; the gain in Brier score is the variance itself.
    """
    share = float(e.y.mean())
    return 2.0 * share * (1.0 - share) * least_gain(e, params)


def least_lift(e: Evidence, params: Params) -> float:
    """Return the lift, bps, of a perfect model whose gain in log loss is `least_gain`."""
    assert e.gross_bps is not None
    won = e.y == 1
    between = float(e.gross_bps[won].mean() - e.gross_bps[~won].mean())
    return lift_of_spread(np.sqrt(least_variance(e, params)), params.gate.coverage) * max(between, 0.0)


def brier_over_base_rate(e: Evidence, params: Params) -> list[Check]:
    """Check that the Brier score is better than that of the base rate."""
    gain = brier_losses(e.baselines["base_rate"], e.y) - brier_losses(e.p, e.y)
    return [_skill("brier_gain_over_base_rate", mean_of(gain, e.known), least_variance(e, params))]


def lift(e: Evidence, params: Params) -> list[Check]:
    """Check that the most confident trades return more, in bps, than all trades: before cost, and after it.

    Both are required. Before cost it is skill at direction; after it the one that money sees, as rows differ in their
    cost and a choice of dear ones adds nothing. Whether the chosen trades pay is no question of the gate.
    """
    assert e.gross_bps is not None
    at, taken = f"{params.gate.coverage:.0%}", _taken(e, params)
    net, paid, needed = e.gross_bps, "", least_lift(e, params)
    if e.cost_bps is not None and taken.any():
        net = e.gross_bps - e.cost_bps
        paid = f"the chosen cost {e.cost_bps[taken].mean():.2f} bps, all {e.cost_bps.mean():.2f}"
    return [
        _skill(f"lift_bps_at_{at}", lift_of(taken, e.gross_bps, e.known), needed),
        _skill(f"lift_after_cost_bps_at_{at}", lift_of(taken, net, e.known), needed, paid),
    ]


def no_leak(e: Evidence, params: Params) -> list[Check]:
    """Check that the AUC on direction, within folds, is plausible: one too high is taken for a leak.

    A value above `leak_auc` that an AUC of `leak_auc_low` shows too often by chance is refused as too few rows.
    """
    g, ranking = params.gate, auc_of(e.p, e.y, e.fold, e.known)
    threshold = f"<= {g.leak_auc}; above {g.leak_auc_sure} chance of {g.leak_auc_low} or less >= {g.leak_chance_sure:g}"
    if np.isnan(ranking.error):
        return [_unknown("no_leak_auc", ranking.n, ranking.why)]
    chance = ranking.chance_of_less(g.leak_auc_low)
    high, sure = ranking.value > g.leak_auc, ranking.value > g.leak_auc_sure
    suspected = (high and chance < g.leak_chance) or (sure and chance < g.leak_chance_sure)
    why = f"{g.leak_auc_low} or less shows as much with chance {chance:.2g}"
    if suspected:
        single = [f"; {name} alone ranks it with an AUC of {auc:.3f}" for name, auc in e.single_column_auc.items()]
        why = f"{LEAK}: direction is not this predictable, {why}" + "".join(single)
    elif high:
        why = f"too few rows to tell a leak from luck: {why}, needs under {g.leak_chance:g}"
    passed = False if suspected else None if high else True
    return [_bounded("no_leak_auc", ranking.estimate(), passed, threshold, why)]


def calibrated(e: Evidence, params: Params) -> list[Check]:
    """Check that events of probability p happen p of the time, where they can happen, for every class.

    A class with fewer than `min_cells` of them is judged with all others only, as its calibration was fitted. Refused
    is an error above the limit that chance does not explain, with Holm's correction over the lines.
    """
    g = params.gate
    cells = _cells(e)
    alone = [c for c in range(cells.shape[1]) if cells[:, c].sum() >= g.min_cells] if cells.shape[1] > 1 else []
    p, y = (values.reshape(len(values), -1) for values in (e.p, e.y))
    found = {
        f":{e.classes[c]}": calibration_error(p[of, c], y[of, c], e.moments(of))
        for c, of in ((c, cells[:, c]) for c in alone)
    }
    rare = [name for c, name in enumerate(e.classes) if c not in alone and cells[:, c].any()] if alone else []
    detail = f"all classes, with {', '.join(rare)}: too few to be judged alone" if rare else ""
    when = None if e.known is None else np.broadcast_to(e.known[:, np.newaxis], cells.shape)[cells]
    found = {"": calibration_error(p[cells], y[cells], when)} | found
    chances = holm(np.array([each.chance for each in found.values()]))
    threshold = f"<= {g.max_calibration_error}, or chance >= {g.size}"
    return [
        _calibration_line(f"calibration_error{name}", each, float(chance), threshold, params, "" if name else detail)
        for (name, each), chance in zip(found.items(), chances, strict=True)
    ]


def _calibration_line(
    name: str, found: CalibrationError, chance: float, threshold: str, params: Params, detail: str
) -> Check:
    """Return the line of one class, `chance` corrected for the number of lines."""
    g = params.gate
    if found.error.n < g.min_cells or np.isnan(chance):
        return _unknown(name, found.error.n, f"{found.error.n} outcomes, too few to see one wrong by .3")
    passed = chance >= g.size or found.error.value <= g.max_calibration_error
    text = f"chance {chance:.3f}, mean of y - p {found.shift:+.3f}" + (f"; {detail}" if detail else "")
    return _bounded(name, found.error, passed, threshold, text)


def each_class(e: Evidence, params: Params, over: str) -> list[Check]:
    """Check that no class is worse than the baseline `over` where it occurs: the mean over classes would hide it.

    Holm's correction over the classes; those with fewer than `min_cells` count in the mean over classes only.
    """
    baseline, cells, g = e.baselines[over], _cells(e), params.gate
    judged = [c for c in range(cells.shape[1]) if cells[:, c].sum() >= g.min_cells]
    gains = [
        mean_of(((baseline[:, c] - e.y[:, c]) ** 2 - (e.p[:, c] - e.y[:, c]) ** 2)[cells[:, c]], e.moments(cells[:, c]))
        for c in judged
    ]
    chances = holm(np.array([gain.chance_of_more() for gain in gains]))
    return [
        _unknown(f"brier_gain_over_{over}:{e.classes[c]}", gain.n, gain.why)
        if np.isnan(chance)
        else _bounded(f"brier_gain_over_{over}:{e.classes[c]}", gain.estimate(), bool(chance >= g.size),
                      f"not below 0: chance >= {g.size}", f"chance {chance:.3f}")
        for c, gain, chance in zip(judged, gains, chances, strict=True)
    ]  # fmt: skip


def each_market(e: Evidence, params: Params) -> list[Check]:
    """Check that no market is significantly worse than the simplest baseline: the pooled mean would hide it.

    Holm's correction over the markets. One with fewer than `min_cells` rows, or whose error they do not show, counts in
    the pooled figures only. No line for a universe of one, of which the pooled figure is the market's.
    """
    if e.symbol is None or len(e.symbols) < 2:
        return []
    g, over = params.gate, SIMPLEST[e.family]
    rows = {name: e.symbol == code for code, name in enumerate(e.symbols) if (e.symbol == code).any()}
    gains = {name: mean_of((e.baseline_losses[over] - e.loss)[of]) for name, of in rows.items()}
    alone = {name: gain for name, gain in gains.items() if gain.n >= g.min_cells and np.isfinite(gain.error)}
    chances = dict(zip(alone, holm(np.array([gain.chance_of_more() for gain in alone.values()])), strict=True))
    lines = []
    for name, gain in gains.items():
        if name in chances:
            detail = f"gain over {over} in {e.loss_name}, chance {chances[name]:.3f}"
            passed, threshold = bool(chances[name] >= g.size), f"not below 0: chance >= {g.size}"
            lines.append(_bounded(f"not_worse:{name}", gain.estimate(), passed, threshold, detail, gain.detectable))
        else:
            detail = "counts in the pooled figures only" + (f": {gain.why}" if gain.why else "")
            threshold = f"judged from {g.min_cells} rows on"
            lines.append(_plain(f"not_worse:{name}", True, gain.value, threshold, gain.n, detail))
    return lines


def luck(e: Evidence, params: Params) -> list[Check]:
    """Check that the lift is not the luck of many trials (Bailey and López de Prado 2014).

    The probability of overfitting (2017) has nothing to rest on: no configuration was chosen by these rows. The
    half-lives were chosen among on inner folds of the training windows, and are among the trials.
    """
    assert e.gross_bps is not None
    g, taken = params.gate, _taken(e, params)
    found = sharpe_of(e.gross_bps - e.gross_bps.mean(), taken, e.known)
    sharpe = deflated_sharpe(found, e.trials, e.trial_sharpes)
    if np.isnan(sharpe):
        return [_unknown("deflated_sharpe", found.n, found.why)]
    needed = least_lift(e, params) / float(e.gross_bps[taken].std())
    passed = _decide(sharpe >= g.min_deflated_sharpe, found.estimate().high, needed)
    about = f"of the lift, {found.value:.3f} a row, against the best of {e.trials} trial(s)"
    if passed is None:
        seen = best_by_luck(found, e.trials, e.trial_sharpes) + found.margin(g.min_deflated_sharpe, POWER)
        about += f"; too few rows: {found.n:,} show a Sharpe ratio of {seen:.2g} or more, in {POWER:.0%} of cases"
    elif not passed:
        about += f"; no lift of {needed:.2g} a row or more: the interval ends at {found.estimate().high:.2g}"
    about += f"; overfitting probability not computable: none of {e.trials} configuration(s) was chosen by these rows"
    return [Check("deflated_sharpe", passed, sharpe, None, None, f">= {g.min_deflated_sharpe}", found.n, about)]


def against_champion(e: Evidence, params: Params) -> Check:
    """Check the candidate against the champion, on rows outside both trainings, as `gate.against_champion` states.

    Shares are of the family's skill, see `family_skill`. Whether the candidate is better is not asked here unless
    `gate.against_champion` is "superior": that is the question of the experiment.
    """
    g = params.gate
    assert e.champion_loss is not None
    challenger = e.loss if e.paired_loss is None else e.paired_loss
    paired = np.isfinite(e.champion_loss) & np.isfinite(challenger)
    name, count = "gain_over_champion", int(paired.sum())
    if count < g.min_paired:
        detail = f"{count} rows after the champion's data that both could score, needs {g.min_paired}; wait for more"
        return _unknown(name, count, f"{detail} outcomes")
    gain = mean_of((e.champion_loss - challenger)[paired], e.moments(paired))
    own = family_skill(e)
    bounds = gain.estimate()
    if np.isnan(gain.error):
        return _unknown(name, count, gain.why)
    if g.against_champion == "superior":
        needed = g.min_improvement_share * own
        shown, threshold = bounds.low > 0 and gain.value >= needed, f"low > 0 and value >= {needed:.2g}"
    else:
        needed = -g.non_inferiority_share * own
        shown, threshold = bounds.low > needed, f"low > {needed:.2g}"
    passed = _decide(shown, bounds.high, needed)
    detail = f"in {e.loss_name}; the family's gain over {SIMPLEST[e.family]} is {own:.2g}"
    if passed is None:
        detail += f"; {_too_few(gain, needed)}"
    elif not passed:
        detail += f"; no gain of {needed:.2g} or more: the interval ends at {bounds.high:.2g}"
    return _bounded(name, bounds, passed, threshold, detail, gain.detectable)


def family_skill(e: Evidence) -> float:
    """Return the candidate's gain over the family's simplest baseline on all its out-of-fold rows, 0 if negative.

    Of all rows, not of the few that champion and candidate share: on those it is mostly noise.
    """
    return max(0.0, float((e.baseline_losses[SIMPLEST[e.family]] - e.loss).mean()))


def _taken(e: Evidence, params: Params) -> Bools:
    """Return (n,) the most confident rows, by a threshold known before each where `rank` is."""
    fold = np.zeros(len(e.p), dtype=np.int64) if e.fold is None else e.fold
    return chosen(ranks_within(e.p, fold) if e.rank is None else e.rank, params.gate.coverage)


def _cells(e: Evidence) -> Bools:
    """Return (n, classes) where a class can happen."""
    return np.ones((len(e.y), len(e.classes)), dtype=bool) if e.present is None else e.present


def _plain(name: str, passed: bool, value: float, threshold: str, n: int, detail: str = "") -> Check:
    """Return a check of a value without an interval."""
    return Check(name, bool(passed), float(value), None, None, threshold, n, detail)


def _bounded(
    name: str,
    estimate: Estimate,
    passed: bool | None,
    threshold: str,
    detail: str = "",
    detectable: float | None = None,
) -> Check:
    """Return a check of an estimate with its interval."""
    low, high = (bound if np.isfinite(bound) else None for bound in (estimate.low, estimate.high))
    return Check(name, passed, estimate.value, low, high, threshold, estimate.n, detail, detectable)


def _decide(shown: bool, high: float, needed: float) -> bool | None:
    """Return True where what is required is shown, False where the interval ends below what is needed, else None."""
    return True if shown else False if high <= needed else None


def _skill(name: str, gain: Measurement, needed: float, detail: str = "", by_value: bool = False) -> Check:
    """Return a check that a gain is above zero, by its whole interval or by value.

    needed  smallest gain that the check is made to find: an interval that ends below it refuses, one that holds both
            it and zero is too few rows
    """
    if np.isnan(gain.error):
        return _unknown(name, gain.n, f"too few rows: {gain.why}")
    bounds = gain.estimate()
    passed = _decide(gain.value > 0 if by_value else bounds.low > 0, bounds.high, needed)
    why = "" if passed else _too_few(gain, needed) if passed is None else (
        f"no gain of {needed:.2g} or more: the interval ends at {bounds.high:.2g}"
    )  # fmt: skip
    detail = "; ".join(part for part in (detail, why) if part)
    return _bounded(name, bounds, passed, "value > 0" if by_value else "low > 0", detail, gain.detectable)


def _too_few(gain: Measurement, needed: float) -> str:
    """Return what so many rows show, and the rows that a gain of `needed` takes, if it is above zero."""
    text = f"too few rows to see it: {gain.n:,} show {gain.detectable:.2g} or more, in {POWER:.0%} of cases"
    if needed > 0.0 and gain.detectable > needed:
        text += f"; {needed:.2g} takes {gain.n * (gain.detectable / needed) ** 2:,.0f}"
    return text


def _unknown(name: str, n: int, detail: str) -> Check:
    """Return a check that could not be computed, and why."""
    return Check(name, None, None, None, None, "computable", n, detail)


def _verdict(family: str, checks: list[Check]) -> Verdict:
    """Return the verdict: passed only if every check passed."""
    reasons = tuple(c.name if not c.detail else f"{c.name}: {c.detail}" for c in checks if not c.passed)
    return Verdict(family, not reasons, tuple(checks), reasons)


# Y3: the checks of a family besides the gain over each baseline and the checks of every model
CHECKS: dict[str, tuple[FamilyChecks, ...]] = {
    "validator": (brier_over_base_rate, lift, no_leak, calibrated, luck),
    "pattern": (partial(each_class, over="prevalence"), calibrated),
    "predictor": (brier_over_base_rate, no_leak, calibrated),
    "regime": (),
}
