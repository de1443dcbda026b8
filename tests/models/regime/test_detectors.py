"""Detectors one by one: probabilities sum to one, read nothing later, and keep their labels across refits."""

import numpy as np
import pytest

from pipelines.contracts import REGIMES
from pipelines.models.directional_ensemble import average
from pipelines.models.regime import gaussian
from pipelines.models.regime.detectors import (
    _PINS,
    DETECTORS,
    change_probability,
    first_states,
    name_clusters,
    name_states,
    readings,
)
from pipelines.models.regime.gaussian import fit_gaussians, stationary_of, transition_interval
from pipelines.models.regime.inputs import COLUMNS, planes, segment_starts
from pipelines.models.regime.kernels import filter_windows, vote
from pipelines.models.regime.tables import TABLES, table
from pipelines.settings import load_params

PARAMS = load_params()


def made_up(m, seed=0):
    """Return (m, columns) plausible values of every column, cross-market ones and sentiment included."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(m, len(COLUMNS)))
    at = {name: i for i, name in enumerate(COLUMNS)}
    rows[:, at["log_return_1"]] *= 3e-3
    for name, scale in (("log_range", 5e-3), ("volatility_20", 3e-3), ("spread_proxy_20", 1e-3), ("adx_14", 25.0)):
        rows[:, at[name]] = scale * rng.lognormal(0, 0.4, m)
    rows[:, at["volatility_regime"]] = rng.random(m)
    rows[:, at["market_sentiment"]] = rng.uniform(-1, 1, m)
    return rows


@pytest.fixture(scope="module")
def fitted():
    inputs, starts = planes(made_up(3000), COLUMNS), segment_starts(900.0 * np.arange(3000))
    reads, unavailable = readings(COLUMNS)
    assert unavailable == {}
    return {n: DETECTORS[n].fit({x: inputs[x] for x in reads[n]}, starts, PARAMS) for n in DETECTORS}


def predicted_labels(name, parameters, rows):
    reads = readings(COLUMNS)[0][name]
    inputs = planes(rows, COLUMNS)
    out = np.empty((*rows.shape[:2], len(DETECTORS[name].labels)))
    DETECTORS[name].predict([inputs[each] for each in reads], parameters, out)
    return out


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_gives_probabilities_of_its_own_labels(name, fitted):
    probabilities = predicted_labels(name, fitted[name], made_up(6 * 128, seed=1).reshape(6, 128, -1))[:, 60:]
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=2), 1.0, atol=1e-12)
    assert np.ptp(probabilities, axis=(0, 1)).min() > 1e-3


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_reads_nothing_later_in_the_window(name, fitted):
    rows = made_up(128, seed=2)[np.newaxis]
    blind = rows.copy()
    blind[:, 90:] = made_up(38, seed=3)
    whole, blinded = predicted_labels(name, fitted[name], rows), predicted_labels(name, fitted[name], blind)
    assert whole[:, :90].tobytes() == blinded[:, :90].tobytes()
    assert not np.array_equal(whole[:, 90:], blinded[:, 90:])


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"hmm", "clustering"}))
def test_a_detector_without_its_input_is_unavailable_at_that_bar(name, fitted):
    rows = made_up(128, seed=2)[np.newaxis]
    rows[0, 100] = np.nan
    probabilities = predicted_labels(name, fitted[name], rows)
    assert np.isnan(probabilities[0, 100]).any()
    assert np.isfinite(probabilities[0, 99]).all()


def test_the_hidden_markov_model_steps_over_a_missing_bar_by_its_transition(fitted):
    rows = made_up(128, seed=2)[np.newaxis]
    rows[0, 100] = np.nan
    probabilities = predicted_labels("hmm", fitted["hmm"], rows)[0]
    np.testing.assert_allclose(probabilities[100], probabilities[99] @ fitted["hmm"]["transition"], atol=1e-12)


@pytest.mark.parametrize("name", DETECTORS)
def test_mapping_tables_cover_the_labels_and_their_rows_sum_to_one(name):
    assert tuple(TABLES[name]) == DETECTORS[name].labels
    assert table(name).shape == (len(DETECTORS[name].labels), len(REGIMES))
    assert table(name).min() >= 0
    np.testing.assert_allclose(table(name).sum(axis=1), 1.0, atol=1e-12)


def test_every_documented_label_exists():
    assert DETECTORS["hmm"].labels == ("bull", "bear", "high_vol", "low_vol", "rotation")
    assert DETECTORS["sentiment"].labels == ("Fearful", "Anxious", "Neutral", "Optimistic", "Euphoric")
    assert DETECTORS["volatility"].labels == DETECTORS["volume"].labels == ("LOW", "NORMAL", "HIGH")
    assert set(PARAMS.regime.weights) == set(DETECTORS) == set(TABLES)


def test_a_detector_without_a_column_is_unavailable_and_names_it():
    without = tuple(c for c in COLUMNS if c not in ("market_sentiment", "cross_beta"))
    reads, unavailable = readings(without)
    assert unavailable == {"sentiment": "MISSING_FEATURE:market_sentiment"}
    assert reads["clustering"][-1] == "correlation"


# ---- the hidden Markov model -------------------------------------------------------------------------------------
def planted(m=6000, seed=4):
    """Return (rows (m, 2), states (m,), transition) of five states in the order of the table."""
    rng = np.random.default_rng(seed)
    transition = np.full((5, 5), 0.0125) + 0.9375 * np.eye(5)
    widths, momenta = np.array([1.0, 1.0, 3.0, -2.0, 0.0]), np.array([1.5, -1.5, 0.0, 0.0, 0.0])
    states = np.empty(m, dtype=int)
    states[0] = 0
    for t in range(1, m):
        states[t] = rng.choice(5, p=transition[states[t - 1]])
    rows = np.column_stack([widths[states], momenta[states]]) + rng.normal(0, [0.5, 0.8], (m, 2))
    return rows, states, transition


def steps(most):
    """Return the family's parameters with at most so many iterations of EM."""
    return PARAMS.regime.model_copy(update={"em_iterations": most})


def refit(rows, guess):
    found, moves, score = fit_gaussians(
        rows, segment_starts(np.arange(float(len(rows)))), guess, np.ones(2), np.full((5, 2), np.nan), steps(100), True
    )
    return found.reordered(name_states(found.means)), moves, score


@pytest.fixture(scope="module")
def planted_fit():
    rows, states, transition = planted()
    found, moves, score = refit(rows, first_states(*rows.T, "either"))
    return rows, states, transition, found, moves, score


def filtered(found, rows):
    p = found.parameters()
    out = np.empty((1, len(rows), 5))
    filter_windows(
        np.ascontiguousarray(rows.T)[:, np.newaxis], p["centre"], p["scale"], gaussian.BOUND, p["means"],
        p["deviations"], p["shares"], p["peaks"], p["transition"], p["stationary"], out,
    )  # fmt: skip
    return out[0]


def test_a_planted_chain_is_found_again(planted_fit):
    rows, states, transition, found, *_ = planted_fit
    assert (filtered(found, rows).argmax(axis=1) == states).mean() > 0.9
    np.testing.assert_allclose(found.transition, transition, atol=0.02)


def test_states_keep_their_names_whatever_order_the_fit_started_in(planted_fit):
    rows, _, _, found, *_ = planted_fit
    guess = first_states(*rows.T, "either")
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        again, *_ = refit(rows, np.array(order)[guess])
        np.testing.assert_allclose(again.means, found.means, atol=0.01)


def test_refits_on_other_stretches_of_a_market_name_the_same_states(simulated):
    data, _ = simulated
    inputs = planes(data.newest(), data.columns)
    rows = np.column_stack([inputs["range"], inputs["momentum"]])
    half = len(rows) // 2
    means = []
    for part in (rows[:half], rows[half:]):
        inside = {"range": part[:, 0], "momentum": part[:, 1]}
        fit = DETECTORS["hmm"].fit(inside, segment_starts(np.arange(float(len(part)))), PARAMS)
        means.append(fit["means"] * fit["scale"] + fit["centre"])
        assert fit["means"][:2, 1].tolist() == _PINS[:2, 1].tolist()
    for half_means in means:  # bull, bear, high_vol, low_vol, rotation: wildest and calmest keep their names
        assert (half_means[:, 0].argmax(), half_means[:, 0].argmin()) == (2, 3)
    np.testing.assert_allclose(means[0][2:4, 0], means[1][2:4, 0], atol=0.2)


def test_clusters_are_named_by_volatility_and_strength_alone():
    means = np.array([[0.0, 2.0], [3.0, 0.0], [-2.0, 0.0], [0.1, -1.0]])
    assert name_clusters(means, 0, 1).tolist() == [0, 3, 1, 2]
    assert name_clusters(means[::-1], 0, 1).tolist() == [3, 0, 2, 1]


def test_the_filter_is_the_forward_recursion_written_out(planted_fit):
    rows, _, _, found, *_ = planted_fit
    x = np.clip((rows[:300] - found.centre) / found.scale, -gaussian.BOUND, gaussian.BOUND)
    away = (x[:, np.newaxis] - found.means) / found.deviations
    density = np.exp(found.peaks - 0.5 * (away**2).sum(axis=2))
    prior, slow = found.stationary, []
    for each in density:
        joint = prior * each
        slow.append(joint / joint.sum())
        prior = slow[-1] @ found.transition
    np.testing.assert_allclose(filtered(found, rows[:300]), slow, atol=1e-12)
    np.testing.assert_allclose(found.stationary @ found.transition, found.stationary, atol=1e-9)


def test_every_iteration_of_em_gains_likelihood():
    rows, *_ = planted(1500)
    guess = first_states(*rows.T, "either")
    starts, pins = segment_starts(np.arange(1500.0)), np.full((5, 2), np.nan)
    scores = [fit_gaussians(rows, starts, guess, np.ones(2), pins, steps(n), True)[2] for n in (1, 3, 6, 12)]
    assert np.all(np.diff(scores) > -1e-6 * len(rows))


def test_the_transition_interval_contains_the_planted_chain(planted_fit):
    _, _, transition, _, moves, _ = planted_fit
    low, high = transition_interval(moves, 96, 500, 0, 1.0)
    assert (low <= high).all()
    fitted_here = moves.sum(axis=0) + 1.0
    fitted_here /= fitted_here.sum(axis=1, keepdims=True)
    assert ((low <= fitted_here) & (fitted_here <= high)).all()
    stay = np.sort(np.diag(transition))[0]
    assert (np.diag(low) < stay).all()
    assert (np.diag(high) > stay).all()


def test_no_step_is_counted_across_a_gap():
    rows, *_ = planted(1500)
    known = np.arange(1500.0)
    known[700:] += 50.0
    starts = segment_starts(known)
    assert np.flatnonzero(starts).tolist() == [0, 700]
    _, moves, _ = fit_gaussians(
        rows, starts, first_states(*rows.T, "either"), np.ones(2), np.full((5, 2), np.nan), steps(5), True
    )
    assert moves[700].sum() == 0
    assert moves[701].sum() == pytest.approx(1.0)


def test_a_change_is_likely_where_the_planted_state_changes(planted_fit):
    rows, states, _, found, *_ = planted_fit
    p = filtered(found, rows)
    change = change_probability(np.stack([p[:-1], p[1:]], axis=1), found.transition)
    moved = states[1:] != states[:-1]
    assert change[moved].mean() > 0.5
    assert change[~moved].mean() < 0.05


def test_the_stationary_distribution_of_an_absorbing_chain_is_its_absorbing_state():
    assert stationary_of(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([1.0, 0.0])


# ---- the vote ----------------------------------------------------------------------------------------------------
def voted(probabilities, weights, margin=0.0, dwell=1):
    n, detectors = len(probabilities), len(weights)
    tables = np.eye(4)[np.tile(np.arange(4), detectors)]
    p, by_detector, code = np.empty((n, 4)), np.empty((detectors, n, 4)), np.empty(n, np.int64)
    vote(probabilities, 4 * np.arange(detectors + 1), np.array(weights), tables, margin, dwell, p, by_detector, code)
    return p, by_detector, code


def test_the_compiled_vote_is_the_mean_over_available_detectors():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), (50, 3, 3)).reshape(50, 3, 12)
    probabilities[:20, -1, 4:8] = np.nan
    probabilities[:5, -1] = np.nan
    weights = np.array([0.5, 0.3, 0.2])
    p, _, code = voted(probabilities, weights)
    np.testing.assert_allclose(
        p, average(probabilities[:, -1].reshape(50, 3, 4).transpose(1, 0, 2), weights), atol=1e-12
    )
    assert np.isnan(p[:5]).all()
    assert (code[:5] == -1).all()


def test_another_regime_must_lead_by_the_margin_and_wait_for_the_dwell():
    path = np.full((1, 6, 4), 0.0)
    path[0, :, 0], path[0, :, 1] = 0.6, 0.4
    path[0, 1:, :2] = [0.48, 0.52]
    assert voted(path, [1.0], margin=0.05)[2] == [0]
    assert voted(path, [1.0], margin=0.01)[2] == [1]
    assert voted(path[:, :3], [1.0], margin=0.01, dwell=4)[2] == [0]
    assert voted(path[:, :5], [1.0], margin=0.01, dwell=4)[2] == [1]


def test_a_state_of_few_bars_does_not_collapse_on_them():
    x, state = np.array([[0.5, 2.0], [0.5, 2.0], [9.0, 9.0]]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    means, deviations = gaussian._moments(x, state, np.full((2, 2), np.nan), prior_rows=20.0)
    assert means.tolist() == [[0.5, 2.0], [9.0, 9.0]]
    assert deviations == pytest.approx(np.array([[(20 / 22) ** 0.5] * 2, [(20 / 21) ** 0.5] * 2]))
