"""The gate's controls (law L10): a perfect model passes, a bad one is refused by the check made for it.

Evidence is simulated with a known truth (`benchmarks.gate_scenarios`): outcomes that overlap, noise with four degrees
of freedom. Thousands of repetitions of the same are in docs/results/gate.md.
"""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import gate_scenarios as scenarios
from pipelines.contracts import Check, Verdict
from pipelines.errors import UnknownName
from pipelines.evaluation.gates import (
    Evidence,
    against_champion,
    calibrated,
    each_class,
    evidence_of,
    judge,
    least_lift,
    lift,
    no_leak,
)
from pipelines.evaluation.report import figure_rows, paid_bps, selective, write_page
from pipelines.evaluation.verdicts import verdict_record
from pipelines.models.losses import log_losses
from pipelines.settings import load_params

PARAMS = load_params()


def evidence(signal: float, seed: int = 0, n: int = 3000, known: float = 1.0) -> Evidence:
    """Return events whose true log-odds vary by `signal`, of which the model knows the share `known`."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n)
    truth = 1 / (1 + np.exp(-(-0.4 + signal * score)))
    y = (rng.random(n) < truth).astype(float)
    p = 1 / (1 + np.exp(-(-0.4 + known * signal * score)))
    base = np.full(n, y.mean())
    faint = np.clip(base + 0.3 * (p - base), 0.01, 0.99)
    gross = np.where(y == 1, 60.0, -40.0) + rng.normal(0, 3, n)
    return with_p(
        Evidence(
            family="validator", loss_name="log loss", classes=("target_first",), loss=np.empty(0),
            baseline_losses={}, p=p, y=y,
            champion_loss=None, trials=1, parity_gap=1e-7, latency_ms=0.1, schema_coverage=1.0, novel_share=0.001,
            baselines={"base_rate": base, "volatility_only": base, "logistic": faint}, gross_bps=gross,
        )
    )  # fmt: skip


def with_p(e: Evidence, **change) -> Evidence:
    """Return the evidence with other probabilities and the losses that follow from them."""
    e = replace(e, **change)
    return replace(
        e, loss=log_losses(e.p, e.y), baseline_losses={k: log_losses(p, e.y) for k, p in e.baselines.items()}
    )


def failed(verdict):
    return {c.name for c in verdict.checks if not c.passed}


def test_a_planted_edge_passes():
    verdict = judge(evidence(0.28), PARAMS)
    assert verdict.passed, verdict.reasons
    assert all(c.n > 0 for c in verdict.checks)


def made(family: str, n: int, what: str, repetitions: int):
    """Yield evidence of a model, perfect or bad, with fixed seeds."""
    for i in range(repetitions):
        yield scenarios.evidence(family, n, what, np.random.default_rng([n, i]))


def share_failed(checks):
    """Return the share of cases in which any line of a check refused."""
    return np.mean([any(c.passed is not True for c in lines) for lines in checks])


@pytest.mark.parametrize(("family", "effect"), [("validator", "0.58"), ("pattern", "0.6"), ("regime", "0.12")])
def test_a_perfect_model_passes_the_whole_gate_where_its_rows_can_show_its_skill(family, effect):
    n = 9000 if family == "validator" else 5000
    refused = [not judge(e, PARAMS).passed for e in made(family, n, effect, 12)]
    assert sum(refused) <= 1


@pytest.mark.parametrize("n", [500, 1500])
def test_calibration_refuses_no_more_than_one_perfect_model_in_twenty(n):
    """The error over ten bins without an interval refused 66 % at n = 500."""
    assert share_failed([calibrated(e, PARAMS) for e in made("validator", n, "0.57", 80)]) <= 0.1
    assert share_failed([calibrated(e, PARAMS) for e in made("pattern", n, "0.3", 40)]) <= 0.1


@pytest.mark.parametrize("what", ["p + .3", "p + .3, one class"])
def test_probabilities_too_high_where_a_pattern_is_present_are_refused_by_calibration(what):
    """Pooled over the cells where it is absent, all of them passed."""
    found = [calibrated(e, PARAMS) for e in made("pattern", 1500, what, 20)]
    assert share_failed(found) >= 0.9
    assert any("mean of y - p -0." in line.detail for line in found[0])


def test_calibration_names_the_class_and_judges_rare_ones_together():
    lines = calibrated(next(iter(made("pattern", 5000, "p + .3, one class", 1))), PARAMS)
    assert "calibration_error:cisd" in {line.name for line in lines if not line.passed}
    assert "calibration_error:fvg" not in {line.name for line in lines if not line.passed}
    assert "calibration_error:rare" not in {line.name for line in lines}
    assert "all classes, with rare" in lines[0].detail


def test_too_few_outcomes_to_see_a_shift_of_a_third_are_refused():
    e = next(iter(made("validator", 500, "0.57", 1)))
    few = replace(e, p=e.p[:200], y=e.y[:200])
    (line,) = calibrated(few, PARAMS)
    assert line.passed is None
    assert "200 outcomes, too few" in line.detail


def test_classes_equal_to_prevalence_are_refused_as_seldom_as_stated_and_a_worse_one_is():
    """Nine intervals of 95 % without a correction refused 21.5 %."""
    equal = [each_class(e, PARAMS, "prevalence") for e in made("pattern", 5000, "equal to the baseline", 80)]
    assert len(equal[0]) == 8
    assert share_failed(equal) <= 0.10
    worse = [each_class(e, PARAMS, "prevalence") for e in made("pattern", 5000, "p + .3, one class", 10)]
    assert share_failed(worse) >= 0.9


@pytest.mark.parametrize("family", ["validator", "pattern", "predictor"])
def test_a_model_that_answers_the_share_of_the_outcome_is_refused(family):
    verdicts = [judge(e, PARAMS) for e in made(family, 1500, "equal to the baseline", 20)]
    assert np.mean([v.passed for v in verdicts]) <= 0.05
    assert np.mean([any(name.startswith("gain_over") for name in failed(v)) for v in verdicts]) >= 0.9


@pytest.mark.parametrize("n", [500, 1500])
def test_the_best_of_twenty_noise_models_is_refused_as_luck(n):
    verdicts = [judge(e, PARAMS) for e in made("validator", n, "best of 20 noise models", 20)]
    assert np.mean([v.passed for v in verdicts]) == 0.0
    assert np.mean(["deflated_sharpe" in failed(v) for v in verdicts]) >= 0.9


def test_no_probability_of_overfitting_is_given_where_these_rows_chose_nothing():
    """A line that always passed stood here: no stage ever wrote what it would have read."""
    lines = {c.name: c for c in judge(evidence(0.28), PARAMS).checks}
    assert "overfitting_probability" not in lines
    assert "overfitting probability not computable: none of 1 configuration" in lines["deflated_sharpe"].detail


def test_skill_that_so_few_rows_cannot_show_is_too_few_and_says_how_many_it_takes():
    lines = [{c.name: c for c in judge(e, PARAMS).checks} for e in made("validator", 500, "0.57", 10)]
    line = next(each["gain_over_base_rate"] for each in lines if each["gain_over_base_rate"].passed is None)
    assert 0 < line.value < line.detectable
    text = r"too few rows to see it: 500 show 0\.\d+ or more, in 95% of cases; 0\.0075 takes ([\d,]+)"
    rows = int(re.search(text, line.detail)[1].replace(",", ""))
    assert rows == pytest.approx(500 * (line.detectable / 0.0075) ** 2, abs=1)


def test_an_interval_that_ends_below_the_least_gain_is_refused():
    verdict = judge(with_p(evidence(0.28), p=np.full(3000, 0.5)), PARAMS)
    line = {c.name: c for c in verdict.checks}["gain_over_base_rate"]
    assert line.passed is False
    assert "no gain of 0.0075 or more: the interval ends at" in line.detail


@pytest.mark.parametrize(
    ("family", "effect"), [("validator", "0.57"), ("predictor", "0.57"), ("pattern", "0.3"), ("regime", "0.05")]
)
@pytest.mark.parametrize("n", [500, 1500])
def test_no_check_refuses_a_perfect_model_and_the_rest_are_too_few_rows(family, effect, n):
    """Refused as unskilled were 60 % of validators at n = 1,500 and 87 % at 500."""
    verdicts = [judge(e, PARAMS) for e in made(family, n, effect, 60)]
    names = {check.name for verdict in verdicts for check in verdict.checks}
    refused = {name: np.mean([{c.name: c.passed for c in v.checks}.get(name) is False for v in verdicts])
               for name in names}  # fmt: skip
    assert max(refused.values()) <= 0.1
    assert np.mean([any(c.passed is False for c in v.checks) for v in verdicts]) <= 0.15
    assert any(verdict_record(v)["state"] == "too few" for v in verdicts)


def test_the_least_lift_is_that_of_a_perfect_model_of_the_least_gain():
    cases = list(made("validator", 1500, "0.57", 60))
    shown = [next(c.value for c in lift(e, PARAMS)) for e in cases]
    assert np.mean([least_lift(e, PARAMS) for e in cases]) == pytest.approx(np.mean(shown), rel=0.1)
    gain = np.mean([(e.baseline_losses["base_rate"] - e.loss).mean() for e in cases])
    assert gain == pytest.approx(PARAMS.gate.least_gain["validator"], rel=0.15)


def test_a_record_names_the_state_of_the_verdict_and_of_every_check():
    lines = [Check(name, passed, None, None, None, "", 1) for name, passed in (("a", True), ("b", None), ("c", False))]
    records = [verdict_record(Verdict("validator", False, tuple(lines[:k]), ())) for k in (2, 3)]
    assert [record["state"] for record in records] == ["too few", "refused"]
    assert [check["state"] for check in records[1]["checks"]] == ["passed", "too few", "refused"]
    assert verdict_record(Verdict("validator", True, tuple(lines[:1]), ()))["state"] == "passed"
    assert records[1]["checks"][0] | asdict(lines[0]) == records[1]["checks"][0]


def test_a_family_without_a_least_gain_is_named():
    with pytest.raises(UnknownName, match=r"no gate\.least_gain for 'width'; known: validator, .*params\.yaml"):
        judge(replace(evidence(0.28), family="width"), PARAMS)


@pytest.mark.parametrize(("family", "auc", "n", "least", "most"), [
    ("validator", "0.58", 500, 0.0, 0.04), ("validator", "0.58", 1500, 0.0, 0.025),
    ("validator", "0.58", 5000, 0.0, 0.03), ("predictor", "0.58", 500, 0.0, 0.025),
    ("predictor", "0.58", 1500, 0.0, 0.02), ("validator", "0.65", 500, 0.3, 0.7),
    ("validator", "0.7", 1500, 0.97, 1.0), ("validator", "0.7", 5000, 1.0, 1.0),
    ("predictor", "0.7", 1500, 0.88, 1.0), ("predictor", "0.7", 5000, 1.0, 1.0),
])  # fmt: skip
def test_a_leak_is_suspected_by_its_value_and_an_edge_is_not(family, auc, n, least, most):
    """By a lower bound of 95 %, 8 % of validators of .58 were suspected at n = 1,500, 6 % of predictors at 5,000."""
    repetitions = 200 if n < 5000 else 100
    suspected = np.mean([no_leak(e, PARAMS)[0].passed is False for e in made(family, n, auc, repetitions)])
    assert least <= suspected <= most


def test_an_auc_that_is_too_high_by_chance_on_few_rows_is_too_few_and_not_a_leak():
    lines = [no_leak(e, PARAMS)[0] for e in made("predictor", 500, "0.65", 100)]
    unsure = [line for line in lines if line.passed is None and line.value is not None]
    assert unsure
    assert all(line.value > PARAMS.gate.leak_auc for line in unsure)
    assert all(re.match(r"too few rows to tell a leak from luck: 0.57 or less shows as much", x.detail) for x in unsure)
    assert not any("LEAK_SUSPECTED" in line.detail for line in unsure)


def test_an_auc_of_the_folds_is_not_taken_for_a_leak():
    e = evidence(0.28)
    fold = np.arange(3000) * 3 // 3000
    e = with_p(e, p=np.clip(e.p / 3 + fold * 0.25, 0.01, 0.99), y=(fold == 2).astype(float), fold=fold)
    assert no_leak(e, PARAMS)[0].passed is None  # every fold has one outcome: nothing is ranked within one


def test_a_leak_is_refused_and_named():
    verdict = judge(evidence(3.0), PARAMS)
    assert "no_leak_auc" in failed(verdict)
    assert any("LEAK_SUSPECTED" in reason for reason in verdict.reasons)


def test_a_model_that_only_learnt_the_barrier_width_is_refused():
    e = evidence(0.28)
    verdict = judge(with_p(e, baselines={**e.baselines, "volatility_only": e.p}), PARAMS)
    assert "gain_over_volatility_only" in failed(verdict)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"parity_gap": 1e-3}, "export_parity"),
        ({"latency_ms": 500.0}, "latency_ms"),
        ({"latency_ms": float("nan")}, "latency_ms"),  # nobody knows
        ({"schema_coverage": 0.5}, "schema_coverage"),
        ({"novel_share": 0.5}, "novel_share"),
        ({"trials": 10**9}, "deflated_sharpe"),
    ],
)
def test_each_operational_check_can_refuse_alone(change, check):
    assert failed(judge(replace(evidence(0.28), **change), PARAMS)) == {check}


def test_too_few_events_are_refused_without_a_guess():
    e = evidence(0.28, n=200)
    verdict = judge(e, PARAMS)
    assert not verdict.passed
    assert {c.name: c.value for c in verdict.checks}["skill"] is None


def compared(e: Evidence, champion: np.ndarray, mode: str):
    gate = PARAMS.gate.model_copy(update={"against_champion": mode})
    return against_champion(replace(e, champion_loss=champion), PARAMS.model_copy(update={"gate": gate}))


def test_superiority_asks_for_a_share_of_the_familys_skill():
    e = evidence(0.28, n=9000)
    assert not compared(e, e.loss.copy(), "superior").passed
    base = e.baselines["base_rate"]
    faint = log_losses(base + 0.15 * (e.p - base), e.y)
    line = compared(e, faint, "superior")
    assert line.passed
    assert "family's gain over base_rate is 0.01" in line.detail
    share = {"min_improvement_share": 50.0, "against_champion": "superior"}
    demanding = PARAMS.model_copy(update={"gate": PARAMS.gate.model_copy(update=share)})
    assert not against_champion(replace(e, champion_loss=faint), demanding).passed


def test_a_pattern_champion_with_a_whole_gain_of_six_in_ten_thousand_can_be_replaced():
    """An absolute improvement of .005 was eight times all the skill that a pattern has."""
    e = scenarios.pattern(6500, 0.4, np.random.default_rng(1))
    base = e.baselines["prevalence"]
    champion = ((base + 0.2 * (e.p - base) - e.y) ** 2).mean(axis=1)
    line = against_champion(replace(e, champion_loss=champion), PARAMS)
    assert 0 < line.value < 0.005
    assert line.passed


def test_paired_rows_that_show_neither_gain_nor_its_absence_are_too_few():
    e = evidence(0.28)
    base = e.baselines["base_rate"]
    champion = log_losses(base + 0.9 * (e.p - base), e.y)
    champion[:2800] = np.nan
    line = compared(e, champion, "superior")
    assert line.passed is None
    assert re.search(r"too few rows to see it: 200 show", line.detail)
    worse = compared(with_p(e, p=np.clip(1 - e.p, 0.01, 0.99)), e.loss, "superior")
    assert worse.passed is False
    assert "or more: the interval ends at -" in worse.detail


def test_non_inferiority_asks_that_no_more_than_a_share_of_the_skill_is_lost():
    e = evidence(0.28, n=9000)
    rng = np.random.default_rng(2)
    equal = log_losses(np.clip(e.p + rng.normal(0.0, 0.005, 9000), 0.01, 0.99), e.y)
    assert compared(e, equal, "non_inferior").passed
    assert not compared(e, equal, "superior").passed
    worse = with_p(e, p=e.baselines["base_rate"])
    assert not compared(worse, e.loss, "non_inferior").passed


def test_too_few_paired_rows_are_refused():
    e = evidence(0.28)
    few = log_losses(np.clip(1 - e.p, 0.01, 0.99), e.y)
    few[50:] = np.nan
    refused = judge(replace(e, champion_loss=few), PARAMS)
    assert any("50 rows after the champion's data" in reason for reason in refused.reasons)


def test_rows_that_a_fit_up_to_the_champions_data_scored_are_the_ones_compared():
    e = evidence(0.28)
    paired = np.where(np.arange(3000) < 2500, np.nan, e.loss)
    line = against_champion(replace(e, champion_loss=e.loss + 0.01, paired_loss=paired), PARAMS)
    assert (line.n, line.value) == (500, pytest.approx(0.01))


def test_the_lift_counts_before_and_after_the_cost_of_each_row():
    """Chosen rows that are dear eat their lift; a cost that is the same everywhere cancels in it."""
    e = evidence(0.28)
    before, same = (lift(replace(e, cost_bps=cost), PARAMS) for cost in (None, np.full(3000, 21.0)))
    assert [line.name for line in same] == ["lift_bps_at_20%", "lift_after_cost_bps_at_20%"]
    assert [line.value for line in same] == pytest.approx([line.value for line in before])
    assert before[0].value == before[1].value
    dear = replace(e, cost_bps=np.where(e.p > np.quantile(e.p, 0.8), 60.0, 10.0))
    gross, net = lift(dear, PARAMS)
    assert (gross.passed, net.passed) == (True, False)
    assert gross.value == before[0].value
    assert net.value == pytest.approx(gross.value - 40.0, abs=0.1)
    assert net.low < net.value < net.high < 0.0
    assert net.detail.startswith("the chosen cost 60.00 bps, all 20.00")
    verdict = judge(dear, PARAMS)
    assert not verdict.passed
    assert [reason.partition(":")[0] for reason in verdict.reasons] == ["lift_after_cost_bps_at_20%"]


def test_figures_have_both_lifts_and_rows_of_an_earlier_release_one_round_trip():
    rng = np.random.default_rng(3)
    oof = {"p": rng.random(4000), "y": np.ones(4000), "extra_gross_bps": rng.normal(size=4000)}
    assert paid_bps(oof, 5.0).tolist() == [5.0] * 4000
    oof["extra_cost_bps"] = np.where(oof["p"] > 0.8, 12.0, 4.0)
    paid = paid_bps(oof, 5.0)
    assert paid is oof["extra_cost_bps"]
    at_20 = selective(oof, paid, PARAMS)["20%"]
    difference = at_20["lift_bps"]["value"] - at_20["lift_after_cost_bps"]["value"]
    assert difference == pytest.approx(12.0 - paid.mean(), abs=0.1)
    assert at_20["lift_after_cost_bps"]["high"] < 0.0 < at_20["lift_bps"]["high"]
    figures = {
        "n": 4000, "cost_bps": paid.mean(), "loss_name": "log loss", "loss": {"model": at_20["net_bps"]},
        "gain_over": {}, "reselection": "none", "selective": {"20%": at_20}, "every_row_net_bps": at_20["net_bps"],
    }  # fmt: skip
    names = [name for name, *_ in figure_rows(figures, None)]
    assert "lift over every row after cost, bps (20 %)" in names
    del at_20["lift_after_cost_bps"]  # of a release before 0.8.0
    assert len(figure_rows(figures, None)) == len(names) - 1


def test_a_stage_output_of_release_0_5_is_read_under_the_names_of_today(tmp_path):
    fit = {
        "family": "validator", "loss_name": "log loss", "classes": ["target_first"], "parity_gap": 0.0,
        "latency_ms": 0.1, "schema_coverage": 1.0, "novel_share": 0.0, "alone": {"rsi_14": 0.9},
    }  # fmt: skip
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    np.savez(tmp_path / "oof.npz", loss=np.zeros(3), p=np.full(3, 0.5), y=np.ones(3), more_gross_bps=np.arange(3.0))
    read = evidence_of(tmp_path, None, 1)
    assert read.single_column_auc == {"rsi_14": 0.9}
    assert read.latency_ms == 0.1  # next to the output from 0.12.0 on
    assert read.gross_bps.tolist() == [0.0, 1.0, 2.0]


def test_figures_of_release_0_5_are_shown_with_their_ensemble_losses():
    estimate = {"value": 0.69, "low": 0.68, "high": 0.7, "n": 100}
    figures = {
        "n": 100, "cost_bps": 5.0, "loss_name": "log loss", "loss": {"model": estimate}, "gain_over": {},
        "reselection": "not judged: windows", "heard": {"lstm": estimate},
    }  # fmt: skip
    assert ["log loss of lstm", "0.6900", "[0.6800, 0.7000]", "100"] in figure_rows(figures, None)


def test_the_page_of_evidence_names_the_state_of_verdict_and_checks(tmp_path):
    lines = tuple(Check(name, passed, None, None, None, "", 1) for name, passed in (("a", True), ("b", None)))
    rng = np.random.default_rng(0)
    oof = {"y": rng.normal(size=30), "p": np.full((30, 1), 1.0), "known": np.arange(30.0), "loss": np.ones(30)}
    np.savez(tmp_path / "oof.npz", **oof)
    (tmp_path / "importance.json").write_text(
        json.dumps({"reselection": {"line": "not judged: windows"}, "columns": {}})
    )
    figures = {"n": 30, "cost_bps": 5.0, "costs": "", "loss_name": "log score", "classes": ["a"]}
    page = tmp_path / "evidence.html"
    write_page(page, Verdict("regime", False, lines, ("b",)), figures, tmp_path, "regime version 1")
    text = page.read_text()
    assert "Gate: <b class='bad'>too few</b>" in text
    assert "<td class='good whole'>✓ passed</td><td>a</td>" in text
    assert "<td class='bad whole'>? too few</td><td>b</td>" in text
    assert "<script" not in text
