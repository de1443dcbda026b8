"""U1–U3: stated weights, renormalisation, the vote and its consensus, and the rule that names the regime."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import REGIMES, SCORE_NAMES
from pipelines.errors import BadValues, UnknownName
from pipelines.settings import load_params
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.regimes import rule_regime
from serving.policy.fusion import N_SCORES, fuse, regime_weights, weight_table

FUSION = load_params().fusion
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/fusion_weights.json").read_text())


def fuse_scores(weights=None, **scores):
    """(confidence, vote, consensus, coverage), shares, contributions; scores as name=(direction, confidence)."""
    direction, confidence = np.full(N_SCORES, np.nan), np.full(N_SCORES, np.nan)
    for name, values in scores.items():
        direction[SCORE_NAMES.index(name)], confidence[SCORE_NAMES.index(name)] = values
    shares, contributions = np.empty(N_SCORES), np.empty(N_SCORES)
    weights = weight_table(FUSION)[4] if weights is None else weights
    answer = fuse(direction, confidence, weights, np.ones(N_SCORES), shares, contributions)
    return answer, dict(zip(SCORE_NAMES, shares, strict=True)), dict(zip(SCORE_NAMES, contributions, strict=True))


@pytest.mark.parametrize("regime", GOLDEN)
def test_weights_are_the_stated_ones_to_four_decimals(regime):
    weights = regime_weights(FUSION, None if regime == "base" else regime)
    assert {name: round(weight, 4) for name, weight in weights.items()} == GOLDEN[regime]


def test_every_weighted_category_has_producers_and_every_producer_one_category_with_a_weight():
    assert set(PRODUCERS) == {*FUSION.weights, "traditional"}
    assert all(PRODUCERS[name] and weight > 0 for name, weight in FUSION.weights.items())
    signals = [signal for signals in PRODUCERS.values() for signal in signals]
    assert len(signals) == len(set(signals))
    assert (weight_table(FUSION)[:5, :-1] > 0).all()  # in every regime, and in none
    assert {f"{signal}.direction" for signal in signals} <= set(SIGNALS.columns)


def test_every_row_of_the_weight_table_sums_to_one():
    assert weight_table(FUSION).sum(axis=1) == pytest.approx(np.ones(6))


def test_an_unavailable_category_leaves_its_weight_to_the_others_and_lowers_coverage():
    (confidence, _, _, coverage), shares, _ = fuse_scores(ict=(1, 0.8), order_flow=(1, 0.6))
    assert shares["ict"] == pytest.approx(0.25 / 0.45)
    assert np.isnan(shares["cmt"])
    assert confidence == pytest.approx((0.25 * 0.8 + 0.20 * 0.6) / 0.45)
    assert coverage == pytest.approx(0.45)


def test_a_neutral_category_is_reported_but_dilutes_nothing():
    (confidence, _, consensus, coverage), shares, contributions = fuse_scores(ict=(1, 0.8), order_flow=(0, np.nan))
    assert (confidence, consensus) == (pytest.approx(0.8), 1.0)
    assert (shares["order_flow"], contributions["order_flow"]) == (pytest.approx(0.20 / 0.45), 0.0)
    assert coverage == pytest.approx(0.25)


def test_no_active_category_is_nan_and_never_one_half():
    (confidence, vote, consensus, coverage), _, _ = fuse_scores(ict=(0, np.nan))
    assert np.isnan(confidence)
    assert (vote, consensus, coverage) == (0.0, 0.0, 0.0)


def test_the_vote_is_the_weighted_log_odds_and_contributions_sum_to_it():
    (_, vote, consensus, _), _, contributions = fuse_scores(ict=(1, 0.6), order_flow=(-1, 0.8))
    ict, flow = 0.25 * np.log(0.8 / 0.2), 0.20 * np.log(0.9 / 0.1)
    assert vote == pytest.approx(ict - flow)
    assert consensus == pytest.approx(abs(ict - flow) / (ict + flow))
    assert np.nansum(list(contributions.values())) == pytest.approx(np.sign(vote) * consensus)


def test_full_confidence_is_clipped_so_that_no_vote_is_infinite():
    (_, vote, _, _), _, _ = fuse_scores(ict=(1, 1.0))
    assert vote == pytest.approx(0.25 * np.log(0.999 / 0.001))


@pytest.mark.parametrize(
    ("percentile", "adx", "trend", "expected"),
    [
        (0.81, 40, 1, "VOLATILE"),
        (0.8, 25, 1, "TRENDING"),
        (0.2, 24.9, -1, "RANGING"),
        (0.19, 40, 1, "QUIET"),
        (np.nan, 40, 1, None),
        (0.5, np.nan, 1, None),
        (0.5, 30, np.nan, None),
    ],
)
def test_the_regime_rule_names_what_it_sees_and_nothing_when_blind(percentile, adx, trend, expected):
    code = float(rule_regime(percentile, adx, trend))
    assert (None if np.isnan(code) else REGIMES[int(code)]) == expected


def test_the_regime_rule_reads_whole_columns():
    assert rule_regime([0.9, 0.1], [10, 10], [1, 1]).tolist() == [2.0, 3.0]


def test_an_unknown_category_or_a_negative_weight_is_refused():
    with pytest.raises(UnknownName, match="astrology"):
        weight_table(FUSION.model_copy(update={"weights": {"astrology": 1.0}}))
    with pytest.raises(BadValues, match="not negative"):
        weight_table(FUSION.model_copy(update={"weights": {"ict": -1.0, "cmt": 2.0}}))
    with pytest.raises(UnknownName, match="SIDEWAYS"):
        regime_weights(FUSION, "SIDEWAYS")
