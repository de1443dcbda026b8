"""A training window chooses its half-life on itself, has fold and ranks, and is fitted again as of a champion."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.traded_events import traded

from pipelines.contracts import DAY_S
from pipelines.evaluation.gates import Evidence, judge
from pipelines.models.base import Dataset
from pipelines.models.losses import log_losses
from pipelines.models.runtime import load_bundle
from pipelines.models.validator import VALIDATOR, half_life
from pipelines.settings import load_params
from pipelines.training.fit import decay_line, train
from pipelines.training.paired import paired_losses
from pipelines.training.walk import fit_window, out_of_fold, rank_among

PARAMS = load_params()
PARAMS = PARAMS.model_copy(update={"validator": PARAMS.validator.model_copy(update={"trees": 30, "depth": 3})})
STEP_S = 3600.0
COLUMNS = ("signal", "noise")


def market(n, turns=None, seed=5, strength=1.5):
    """Return n hourly events; the signal predicts the outcome, from row `turns` on the other way round."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 2))
    way = np.where(np.arange(n) < (n if turns is None else turns), 1.0, -1.0)
    y = (rng.random(n) < 1 / (1 + np.exp(-strength * way * rows[:, 0]))).astype(float)
    known = STEP_S * np.arange(n)
    extras = {**traded(n), "volatility": rng.normal(size=(n, 2))}
    return Dataset(COLUMNS, lambda at: rows[at], y, np.ones(n), np.ones(n), known, known + STEP_S, np.arange(n), extras)


def quiet(line):
    pass


# ---- the half-life of the weights


def test_a_market_that_turned_is_forgotten_and_a_steady_one_is_not():
    turned, steady = market(6_000, turns=3_500), market(6_000)
    assert half_life(turned, PARAMS, STEP_S).events == 500
    chosen = half_life(steady, PARAMS, STEP_S)
    assert chosen.tried.keys() == {500.0, 2000.0, 8000.0}
    assert chosen.tried[8000.0] < chosen.tried[500.0]


def test_in_a_steady_market_the_longest_half_life_is_seldom_lost_to_the_noise_of_one_fold():
    """The lowest loss alone chose a shorter one in every second market."""
    found = [half_life(market(3_000, seed=seed, strength=0.25), PARAMS, STEP_S) for seed in range(10)]
    lowest = [min(sorted(each.tried, reverse=True), key=each.tried.__getitem__) for each in found]
    assert lowest.count(8000.0) <= 6
    assert [each.events for each in found].count(8000.0) >= 8


def test_a_window_too_short_to_compare_takes_the_longest_half_life_and_says_why():
    chosen = half_life(market(60), PARAMS, STEP_S)
    assert (chosen.events, dict(chosen.tried)) == (8000.0, {})
    assert "needs 50" in chosen.note


def test_a_fold_chooses_on_its_own_window_whatever_comes_later():
    data = market(3_000)
    garbage = replace(data, y=np.where(np.arange(3_000) < 1_200, data.y, 1.0 - data.y))
    one, two = (out_of_fold(VALIDATOR, each, PARAMS, STEP_S, quiet) for each in (data, garbage))
    first = one.fold == 1
    assert one.half_lives[0] == two.half_lives[0]
    assert one.p[first].tobytes() == two.p[first].tobytes()
    assert one.rank[first].tobytes() == two.rank[first].tobytes()


def test_the_chosen_half_life_is_in_fit_json_and_card_and_a_window_that_forgets_is_named(tmp_path):
    few = PARAMS.labels.model_copy(update={"few_effective_rows": 2_000.0})
    data, params = market(3_000, turns=1_800), PARAMS.model_copy(update={"labels": few})
    train(VALIDATOR, data, tmp_path, params, {"symbol": "TEST"}, STEP_S, quiet)
    decay = json.loads((tmp_path / "fit.json").read_text())["decay"]
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert (decay["half_life_events"], decay["configurations"], len(decay["by_fold"])) == (500, 3, PARAMS.splits.folds)
    assert decay["effective_rows"] == pytest.approx(2 * 500 / np.log(2), rel=0.05)  # (Σ 2^-i/h)² / Σ 4^-i/h
    assert "weights halve every 500 events, chosen by log loss on an inner fold" in card
    assert "FORGETS: under 2,000 effective rows" in card
    assert "FORGETS" not in decay_line(decay, 3_000, PARAMS)


# ---- folds and ranks


def test_a_rank_is_the_share_of_the_folds_own_calibration_predictions_below():
    data = market(3_000)
    found = out_of_fold(VALIDATOR, data, PARAMS, STEP_S, quiet)
    np.testing.assert_array_equal(np.unique(found.fold, return_counts=True)[1], np.full(PARAMS.splits.folds, 360))
    trained = fit_window(VALIDATOR, data.select_rows(np.arange(1_198)), PARAMS, STEP_S, quiet).fitted
    (below,) = trained.calibration_p
    by_hand = [(below < p).mean() for p in found.p[found.fold == 1]]
    np.testing.assert_allclose(found.rank[found.fold == 1], by_hand)
    assert abs((found.rank >= 0.8).mean() - 0.2) < 0.05  # a causal threshold takes about the share it is set for


def test_a_rank_is_by_class_and_nan_where_a_class_or_a_prediction_is_missing():
    p = np.array([[0.2, 0.3], [np.nan, 0.5]])
    ranks = rank_among(p, [np.array([0.1, 0.2, 0.4, 0.8]), np.empty(0)])
    np.testing.assert_array_equal(ranks, [[0.25, np.nan], [np.nan, np.nan]])
    assert rank_among(p, ()) is None


# ---- the paired fit

CHAMPION_ENDS, TURN_DAYS, AFTER = 6_000, 37, 400


def turned_before_the_champion_ended():
    """Return a market whose last 37 days before the champion's end, and all after it, go the other way."""
    return market(CHAMPION_ENDS + AFTER, turns=CHAMPION_ENDS - int(TURN_DAYS * DAY_S / STEP_S))


def evidence_against(data, found, champion_loss, paired_loss):
    return Evidence(
        family="predictor", loss_name="log loss", classes=("up",), loss=found.loss,
        baseline_losses={"base_rate": found.baselines["base_rate"].loss}, p=found.p, y=data.y[found.row],
        champion_loss=champion_loss, trials=1, parity_gap=0.0, latency_ms=0.1, schema_coverage=1.0, novel_share=0.0,
        baselines={"base_rate": found.baselines["base_rate"].p}, paired_loss=paired_loss,
    )  # fmt: skip


def test_a_champion_does_not_win_for_its_age_alone():
    """The challenger is the champion's own recipe: its last fold loses to it, a fit as of the champion ties."""
    fixed = PARAMS.model_copy(update={"splits": PARAMS.splits.model_copy(update={"folds": 2})})
    data = turned_before_the_champion_ended()
    through = float(data.ended[CHAMPION_ENDS - 1])
    champion = fit_window(VALIDATOR, data.select_rows(data.ended <= through), fixed, STEP_S, quiet).fitted
    found = out_of_fold(VALIDATOR, data, fixed, STEP_S, quiet)
    later = data.known[found.row] > through
    champion_loss = np.full(len(found.row), np.nan)
    rows = data.select_rows(found.row[later])
    champion_loss[later] = log_losses(champion.predict(rows.all_inputs()).p, rows.y)
    paired = paired_losses(VALIDATOR, data, found.row, through, (), fixed, STEP_S, quiet)
    assert np.isnan(paired[~later]).all()
    assert (champion_loss[later] - found.loss[later]).mean() < -0.05  # for its age
    np.testing.assert_array_equal(paired[later], champion_loss[later])

    def gain(paired_loss):
        verdict = judge(evidence_against(data, found, champion_loss, paired_loss), fixed)
        return next(check for check in verdict.checks if check.name == "gain_over_champion")

    assert gain(None).value < -0.05
    assert gain(paired).value == 0.0


def test_the_paired_fit_reads_no_label_after_the_champions_data_and_leaves_out_what_the_challenger_does():
    data = market(2_000)
    at, through = np.arange(800, 2_000), float(data.ended[1_499])
    ruined = replace(data, y=np.where(np.arange(2_000) <= 1_499, data.y, 1.0 - data.y))
    one, two = (paired_losses(VALIDATOR, each, at, through, (), PARAMS, STEP_S, quiet) for each in (data, ruined))
    scored = np.isfinite(one)
    assert scored.sum() == np.isfinite(two).sum() == 499  # row 1500 was known when the champion's last label ended
    p_one, p_two = np.exp(-one[scored]), np.exp(-two[scored])
    np.testing.assert_allclose(p_one + p_two, 1.0)  # the same predictions, of opposite outcomes
    without = paired_losses(VALIDATOR, data, at, through, ("signal",), PARAMS, STEP_S, quiet)
    assert without[scored].mean() > one[scored].mean() + 0.1


def test_a_paired_fit_without_enough_rows_pairs_nothing_and_says_why():
    data, lines = market(300), []
    losses = paired_losses(VALIDATOR, data, np.arange(300), float(data.ended[20]), (), PARAMS, STEP_S, lines.append)
    assert np.isnan(losses).all()
    assert any("not paired: 21 training events" in line for line in lines)


# ---- columns left out


def test_columns_left_out_are_dropped_and_named(tmp_path):
    params = PARAMS.model_copy(update={"validator": PARAMS.validator.model_copy(update={"left_out": ["noise"]})})
    digest = train(VALIDATOR, market(1_500), tmp_path, params, {"symbol": "TEST"}, STEP_S, quiet)
    assert load_bundle(tmp_path / "bundle", digest).columns == ("signal",)
    fit = json.loads((tmp_path / "fit.json").read_text())
    assert fit["left_out"] == ["noise"]
    assert "dropped noise: left out: by params.yaml or a reselection" in (tmp_path / "bundle" / "card.md").read_text()
