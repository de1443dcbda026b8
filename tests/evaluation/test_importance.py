"""Column importance (F5): an oracle is first, noise has none, copies share a cluster, the reselection rule."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.traded_events import traded

from pipelines.contracts import REGIMES
from pipelines.evaluation.importance import (
    PermutationPlan,
    PermutationResult,
    clusters,
    importance,
    not_permuted,
    plan_permutation,
    reselection,
    section,
    shares,
)
from pipelines.models.base import Dataset
from pipelines.models.calibration_and_novelty import logit
from pipelines.models.validator import VALIDATOR, contributions, fit_trees
from pipelines.settings import load_params
from pipelines.training.walk import out_of_fold

PARAMS = load_params()
PARAMS = PARAMS.model_copy(update={"validator": PARAMS.validator.model_copy(update={"trees": 40, "depth": 4})})
COLUMNS = ("noise_a", "twin", "oracle", "twin_stretched", "noise_b", "noise_c", "noise_d", "noise_e")
TRENDING, RANGING = REGIMES.index("TRENDING"), REGIMES.index("RANGING")


def events(n=3_000, seed=5):
    """Return rows whose y depends on the oracle in trends and, weakly, on a factor of two columns."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(COLUMNS)))
    factor = rng.normal(size=n)
    rows[:, 1], rows[:, 3] = factor + 0.25 * rows[:, 1], np.exp(factor + 0.25 * rows[:, 3])
    regime = np.where(rng.random(n) < 0.5, TRENDING, RANGING).astype(float)
    regime[:10] = regime[-10:] = np.nan
    pull = 2.5 * rows[:, 2] * (regime == TRENDING) + 0.8 * factor
    known = 900.0 * np.arange(n)
    return Dataset(
        columns=COLUMNS, inputs=lambda at: rows[at], y=(rng.random(n) < 1 / (1 + np.exp(-pull))).astype(float),
        weight=np.ones(n), uniqueness=np.ones(n), known=known, ended=known + 900.0, at=np.arange(n),
        extras={"volatility": rng.normal(size=(n, 2)), "regime": regime} | traded(n),
    )  # fmt: skip


def importance_of(data):
    plan = plan_permutation(data, PARAMS)
    oof = out_of_fold(VALIDATOR, data, PARAMS, 900.0, lambda line: None, plan)
    return importance(plan, oof.permutation, data.select_rows(oof.row).extras, VALIDATOR.loss_name, PARAMS)


@pytest.fixture(scope="module")
def report():
    return importance_of(events())


def test_the_oracle_comes_first_by_both_measures(report):
    for measure in (lambda each: each["rise"]["value"], lambda each: each["contribution"]):
        assert max(report["columns"], key=lambda name: measure(report["columns"][name])) == "oracle"
    assert report["columns"]["oracle"]["rise"]["low"] > 0


def test_noise_has_no_importance(report):
    assert all(report["columns"][name]["share"] < 0.01 for name in COLUMNS if name.startswith("noise"))


def test_copies_share_one_cluster_with_an_importance_that_neither_has_alone(report):
    twin, stretched = report["columns"]["twin"], report["columns"]["twin_stretched"]
    assert twin["cluster"] == stretched["cluster"]
    both = report["clusters"][twin["cluster"]]
    assert both["columns"] == ["twin", "twin_stretched"]
    assert both["rise"]["value"] > 1.2 * max(twin["rise"]["value"], stretched["rise"]["value"])
    assert sorted(len(c["columns"]) for c in report["clusters"]) == [1] * 6 + [2]


def test_each_regime_shows_what_counts_in_it(report):
    by = report["by_regime"]
    assert by["TRENDING"]["clusters"]["oracle"]["share"] > 0.7
    assert by["RANGING"]["clusters"]["oracle"]["share"] < 0.3
    assert by["UNKNOWN"]["rows"] == 10  # those at the start are only trained on
    assert sum(each["rows"] for each in by.values()) == report["rows"]


def test_five_noise_columns_of_eight_propose_a_challenger_without_them_and_none_do_not(report):
    assert report["reselection"]["proposed"] is True
    assert report["reselection"]["leave_out"] == [name for name in COLUMNS if name.startswith("noise")]
    assert report["reselection"]["keep"] == ["twin", "oracle", "twin_stretched"]
    without = importance_of(events().select_columns(np.array([not name.startswith("noise") for name in COLUMNS])))
    assert without["reselection"]["proposed"] is False
    assert without["reselection"]["leave_out"] == []


def test_the_rule_proposes_above_three_tenths_not_at_them():
    share_of = {f"c{i}": 0.001 if i < 3 else 0.142 for i in range(10)}
    assert reselection(share_of, 0.01, 0.30)["proposed"] is False
    proposal = reselection(share_of | {"c3": 0.0099}, 0.01, 0.30)
    assert proposal["proposed"] is True
    assert proposal["line"].startswith("proposed: 4 of 10 columns (40%)")
    assert proposal["line"].endswith("without c0, c1, c2, c3")
    assert reselection(share_of | {"c3": 0.01}, 0.01, 0.30)["proposed"] is False  # low is below one per cent, not at it


def test_where_no_loss_rises_nothing_is_judged():
    plan = PermutationPlan(("a", "b"), ((0,), (1,)))
    none = importance(plan, PermutationResult(-np.ones((50, 2)), None), {}, "log loss", PARAMS)
    assert shares(-np.ones((50, 2))) == [None, None]
    assert none["reselection"]["proposed"] is None
    assert none["reselection"]["line"].startswith("not judged")
    assert none["columns"]["a"]["contribution"] is None


def test_the_catalogues_copies_are_joined_whatever_their_values_and_clusters_are_transitive():
    rng = np.random.default_rng(1)
    free = rng.normal(size=(400, 3))
    assert clusters(free, ("momentum_10", "adx_14", "roc_10"), 0.9) == ((0, 2), (1,))
    chain = free[:, :1] + 0.35 * np.cumsum(rng.normal(size=(400, 3)), axis=1)  # each correlates with the next
    assert clusters(chain, ("a", "b", "c"), 0.85) == ((0, 1, 2),)
    assert clusters(np.column_stack([free[:, 0], -free[:, 0], np.ones(400)]), ("a", "b", "c"), 0.9) == ((0, 1), (2,))


def test_contributions_add_up_to_the_prediction_of_the_trees():
    data = events(600)
    trees = fit_trees(data.all_inputs(), data.y, data.weight, PARAMS)
    fitted = type("Fit", (), {"model": trees})()
    rest = logit(trees.predict_proba(data.all_inputs())[:, 1]) - contributions(fitted, data.all_inputs()).sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-4)  # the base value of every row


def test_the_same_seed_gives_the_same_report_on_one_machine_and_it_is_json(report):
    assert importance_of(events()) == report
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_permuting_columns_does_not_change_the_out_of_fold_predictions():
    data = events(1_200)
    plain = out_of_fold(VALIDATOR, data, PARAMS, 900.0, lambda line: None)
    permuted = out_of_fold(VALIDATOR, data, PARAMS, 900.0, lambda line: None, plan_permutation(data, PARAMS))
    np.testing.assert_array_equal(plain.p, permuted.p)
    assert plain.permutation is None


def test_windows_are_not_permuted_and_the_reason_is_given():
    data = events(50)
    why = plan_permutation(replace(data, inputs=lambda at: np.zeros((len(at), 60, len(COLUMNS)))), PARAMS)
    assert "windows of 60 bars" in why
    assert "windows of 60 bars" in section(not_permuted(why))


def test_the_page_shows_the_rules_line_every_column_and_every_regime(report):
    page = section(report)
    assert report["reselection"]["line"].split(";")[0] in page
    assert all(word in page for word in (*COLUMNS, "TRENDING", "RANGING", "UNKNOWN"))
