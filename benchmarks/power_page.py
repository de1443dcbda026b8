"""The page docs/results/power.md, from the cases that `benchmarks.power` stored."""

from scipy.stats import binom

from benchmarks import gate_scenarios as scenarios
from benchmarks import power_tail, power_watch
from benchmarks.power import PAIRED, REPETITIONS, SERIES, SIZES, TRADE_BPS, sizes_of
from benchmarks.results import table
from pipelines.contracts import JsonObject
from pipelines.evaluation.report import SIMPLEST
from pipelines.params import Params

INTRODUCTION = """\
Made by `python -m benchmarks.power --write` (about ten minutes on two cores; an interrupted run goes on where it
stopped). Everything here is simulated with a known truth: outcomes that overlap, knowledge that changes slowly, noise
with four degrees of freedom (`benchmarks/gate_scenarios.py`). No market's result was read. **The thresholds at the end
follow from these tables and were set before any result under them was seen**, but `leak_chance`, `leak_chance_sure` and
`least_gain`: these were set by these tables alone, after results of 0.8.0 had been seen. Shares are of {repetitions}
cases (half of the largest sizes): 5 % has a standard error of 2 points. `docs/results/gate.md` repeats them with
thousands."""

INTERVALS = """\
Coverage of a 95 % interval of a mean, where one is given; in brackets the share of samples for which it is. It is a t
interval on 15 to 30 long averages; rows that depend over more than n / 15 rows, or are under 60, are "too few". The
percentile bootstrap before it covered 63 % at n = 20 and 82 % on MA(16) at n = 1,000. AR(.9) depends over 19 rows and
needs 1,000."""

SKILL = """\
A perfect model knows the true chances. *Effect*: AUC of what can be known (validator, predictor), standard deviation of
the log-odds of a class that is present (pattern), nats a row (regime). Shares of cases in which each check refuses;
`+ few` adds those in which it has too few rows to decide: neither is what it requires shown, nor that an effect of
`gate.least_gain` is absent. Both are no promotion. *Detectable* is the gain over the simplest baseline that its rows
show in 95 of 100 cases."""

WRONG = """\
The same models, made bad in one way. Refused by the gate, and by the check made for it."""

PAIRS = """\
Share of candidates that pass against a champion on so many paired rows, by how much of the champion's own skill they
gain over it. Two fits of the same skill differ by what each learnt of noise. Non-inferior: no more than
`gate.non_inferiority_share` of the family's skill is lost; whether a candidate is better is then asked by an
experiment, on outcomes that neither has seen."""

BREAKER = """\
A breaker stops new trades until a person looks; those not listed here compare one value with a limit."""


def page(done: dict[str, JsonObject], params: Params) -> str:
    """Return the page of the cases done."""
    blocks = ["# What the checks can find", INTRODUCTION.format(repetitions=REPETITIONS)]
    blocks += ["## Intervals", INTERVALS, interval_table(done)]
    blocks += ["## The gate: perfect models", SKILL]
    for family in scenarios.EFFECTS:
        blocks += [f"### {family}", skill_table(family, done)]
    blocks += ["## The gate: bad models", WRONG, wrong_table(done)]
    blocks += ["## Against a champion", PAIRS, paired_table(done)]
    blocks += ["## Breakers that rest on samples", BREAKER, breaker_table(done, params)]
    blocks += ["## Alarms", power_watch.TEXT, table(power_watch.HEADS, power_watch.rows())]
    blocks += ["## Tails and losses", power_tail.TEXT, table(power_tail.HEADS, power_tail.rows())]
    blocks += ["## Thresholds that follow", table(["parameter", "value", "why"], thresholds(params))]
    return "\n\n".join(blocks) + "\n"


def _share(x: float | None) -> str:
    """Return a share in per cent."""
    return "–" if x is None else f"{100 * x:.0f} %"


def interval_table(done: dict[str, JsonObject]) -> str:
    """Return coverage by kind of series and n."""
    sizes = (20, 100, *SIZES)
    rows = []
    for kind in SERIES:
        cells = [done[f"interval|{kind}|{n}"] for n in sizes]
        rows.append([kind, *("too few" if c["known"] == 0 else f"{100 * c['covered']:.1f} % ({_share(c['known'])})"
                             for c in cells)])  # fmt: skip
    return table(["values", *(f"n = {n:,}" for n in sizes)], rows)


GROUPS = {
    "skill": ("gain_over_base_rate", "gain_over_prevalence", "gain_over_constant"),
    "logistic": ("gain_over_logistic",),
    "lift": ("lift_bps_at_20%",),
    "deflated Sharpe": ("deflated_sharpe",),
    "leak": ("no_leak_auc",),
    "calibration": ("calibration_error",),
    "a class worse": ("brier_gain_over_prevalence",),
}
HAS = {
    "validator": ("skill", "logistic", "lift", "deflated Sharpe", "leak", "calibration"),
    "predictor": ("skill", "logistic", "leak", "calibration"),
    "pattern": ("skill", "logistic", "calibration", "a class worse"),
    "regime": ("skill",),
}


def _refused(case: JsonObject, group: str) -> str:
    """Return how often the checks of a group refused, and were too few."""
    names = GROUPS[group]
    refused, few = (sum(case[key].get(name, 0) for name in names) / case["n"] for key in ("checks", "few"))
    return _share(refused) + (f" + few {_share(few)}" if few >= 0.005 else "")


def _whole(case: JsonObject) -> str:
    """Return how often the gate refused because of a value, and because of too few rows alone."""
    few = case["only_few"] / case["n"]
    return _share(case["refused"] / case["n"] - few) + (f" + few {_share(few)}" if few >= 0.005 else "")


def skill_table(family: str, done: dict[str, JsonObject]) -> str:
    """Return refusals of perfect models of a family, by n and effect."""
    first = f"gain_over_{SIMPLEST[family]}"
    rows = []
    for n in sizes_of(family):
        for effect in scenarios.EFFECTS[family]:
            case = done[f"gate|{family}|{n}|{effect}"]
            rows.append([
                f"{n:,}", f"{effect:g}", f"{case['values'].get(first, float('nan')):.4f}",
                f"{case['detectable'].get(first, float('nan')):.4f}",
                *(_refused(case, group) for group in HAS[family]), _whole(case),
            ])  # fmt: skip
    return table(["n", "effect", "mean gain", "detectable", *HAS[family], "whole gate"], rows)


def wrong_table(done: dict[str, JsonObject]) -> str:
    """Return how often bad models are refused."""
    rows = []
    for family, names in scenarios.OF_FAMILY.items():
        for name in names:
            check = scenarios.BAD[name][1]
            cells = []
            for n in sizes_of(family):
                case = done[f"gate|{family}|{n}|{name}"]
                own = max((case["checks"].get(c, 0) + case["few"].get(c, 0)) / case["n"]
                          for c in {*case["checks"], *case["few"], check} if c.startswith(check))  # fmt: skip
                cells.append(f"{_share(case['refused'] / case['n'])}; {_share(own)}")
            rows.append([family, name, check, *cells])
    return table(["family", "bad model", "made for it", "n = 500: gate; check", "1,500", "5,000", "a year"], rows)


def paired_table(done: dict[str, JsonObject]) -> str:
    """Return how often candidates pass against a champion."""
    shares = (0.0, 0.5, 1.0, 1.5, 2.0)
    rows = [
        [mode.replace("_", "-"), f"{n}", *(_share(done[f"champion|{mode}|{n}|{share}"]["passed"]) for share in shares)]
        for mode in ("superior", "non_inferior")
        for n in PAIRED
    ]
    return table(["required", "paired rows", *(f"+{share:.0%} of its skill" for share in shares)], rows)


def breaker_table(done: dict[str, JsonObject], params: Params) -> str:
    """Return false and true trips of breakers that rest on samples."""
    fills, limit = params.breakers.fills, params.breakers.max_rejected
    rows = [
        [f"`model`, loss of trades: interval of {n} below 0", f"{TRADE_BPS:g} bps a trade, t4, overlapping",
         *(_share(done[f"trades|{n}|{mean}"]["tripped"]) for mean in (0, -10, -20)), "mean 0; -10; -20 bps"]
        for n in (60, 100, 200)
    ]  # fmt: skip
    rows.append([f"`execution`, {limit} of {fills} rejected", "independent",
                 *(f"{100 * float(binom.sf(limit - 1, fills, p)):.1f} %" for p in (0.05, 0.3, 0.4)),
                 "true rate .05; .3; .4"])  # fmt: skip
    limit_bps = params.breakers.max_slippage_bps
    rows.append([f"`execution`, mean slippage of {fills} over {limit_bps:g} bps", "4 bps a fill, t4",
                 *(f"{100 * done[f'slippage|{mean}']['tripped']:.1f} %" for mean in (1, 7, 10)),
                 "true mean 1; 7; 10 bps"])  # fmt: skip
    return table(["breaker", "noise", "trips: healthy", "ill", "very ill", "which are"], rows)


WHY = {
    "gate.min_events": "with fewer rows no check finds what it is for; at 500 what markets have is too little to see",
    "gate.size": "calibration, or the classes, refuse a perfect model so often at most, all lines together; .04, "
    "since a T² on 15 averages refuses up to a fifth more than it says",
    "gate.max_calibration_error": "chance alone would decide over trifles at n = 20,000: both are required",
    "gate.min_cells": "of a class, from which on p + .3 is found alone in about 8 of 10 cases after Holm; all together "
    "find it with fewer",
    "gate.leak_auc, leak_auc_sure, leak_auc_low": "the values of the specification: see the column leak at .58 and .70",
    "gate.leak_chance, leak_chance_sure": "of an AUC of .57 showing as much. Above .60, .025 (a 95 % interval) "
    "suspected 8 % of perfect validators of .58 at n = 1,500, .001 suspects 1 %. Above .65 the value is enough where "
    ".01 holds: of predictors of .58 with 500 rows 1 % are suspected (the value alone: 4 %), the others are too few",
    "gate.least_gain": "of an AUC of .57, of log-odds of deviation .3, and of .05 nats: a year's rows show them",
    "gate.min_deflated_sharpe": "the best of 20 noise models is refused; at one trial it needs no more than the lift's "
    "interval",
    "gate.min_paired": "an interval needs 60; on 100 to 700 rows superiority is seen only over a champion that is far "
    "behind, which is why the gate asks non-inferiority and an experiment the rest",
    "gate.min_improvement_share": "of the family's skill; what an experiment is made to find",
    "gate.non_inferiority_share": "of the family's skill; an equal candidate is shown to lose no more in 12 to 31 % of "
    "cases on so few rows, the others wait for more",
    "breakers.trades": "50 were too few for an interval on dependent trades; 100 are ten weeks of ten trades",
    "breakers.fills, max_rejected, max_slippage_bps": "unchanged: a healthy venue trips in under 1 %, an ill "
    "one in most",
}


def thresholds(params: Params) -> list[list[str]]:
    """Return the thresholds of params.yaml that rest on this page, and why they have their values."""
    g, b = params.gate, params.breakers
    values = {
        "gate.min_events": f"{g.min_events}",
        "gate.size": f"{g.size}",
        "gate.max_calibration_error": f"{g.max_calibration_error}",
        "gate.min_cells": f"{g.min_cells}",
        "gate.leak_auc, leak_auc_sure, leak_auc_low": f"{g.leak_auc}, {g.leak_auc_sure}, {g.leak_auc_low}",
        "gate.leak_chance, leak_chance_sure": f"{g.leak_chance:g}, {g.leak_chance_sure:g}",
        "gate.least_gain": ", ".join(f"{family} {gain:g}" for family, gain in g.least_gain.items()),
        "gate.min_deflated_sharpe": f"{g.min_deflated_sharpe}",
        "gate.min_paired": f"{g.min_paired}",
        "gate.min_improvement_share": f"{g.min_improvement_share}",
        "gate.non_inferiority_share": f"{g.non_inferiority_share}",
        "breakers.trades": f"{b.trades}",
        "breakers.fills, max_rejected, max_slippage_bps": f"{b.fills}, {b.max_rejected}, {b.max_slippage_bps:g}",
    }
    return [[f"`{name}`", value, WHY[name]] for name, value in values.items()]
