"""Weights learned from outcomes: floor and step always hold, good categories rise, neutral ones stay, exact replay."""

from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from pipelines.contracts import CATEGORIES, DAY_S
from pipelines.errors import BadShape, BadTimes, BadValues, StateError, UnknownName
from pipelines.settings import load_params
from serving.policy.online_weights import (
    N,
    OnlineWeights,
    ResolvedEvent,
    base_rate,
    beta_quantiles,
    initial_state,
    pattern_posterior,
    target_weights,
    update,
    weights_in_force,
)

PARAMS = load_params()
RULES = PARAMS.learning
SHORT = RULES.model_copy(update={"history_decisions": 30, "outcomes_a_source": 12})
FREE = RULES.model_copy(update={"max_step_a_day": 0.99, "share": 0.0, "rate": 1.0})
STATED = tuple(PARAMS.fusion.weights[name] for name in CATEGORIES)
NAN = float("nan")
FLOOR = RULES.floor / N
SLACK = 1e-12


def learned(outcomes, rules=RULES, begin=None):
    state = begin or initial_state(STATED, 0.4, rules)
    for outcome in outcomes:
        state = update(state, outcome, rules)
    return state


def stream(seed, n, a_day=20, **always):
    """Outcomes of which half reach their target; the categories in `always` score side × a function of the label."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        side, label = float(rng.choice([-1.0, 1.0])), float(rng.random() < 0.5)
        scores = rng.choice([-1.0, 1.0], N) * rng.random(N)
        for name, score in always.items():
            scores[CATEGORIES.index(name)] = side * score(label)
        yield ResolvedEvent(k * DAY_S / a_day, tuple(scores.tolist()), side, label)


word = st.one_of(st.just(NAN), st.just(0.0), st.floats(-1.0, 1.0))
outcome = st.tuples(
    st.floats(0.0, 2.0 * DAY_S),  # seconds since the one before
    st.tuples(*[word] * N),
    st.sampled_from([-1.0, 1.0]),
    st.sampled_from([0.0, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(outcome, max_size=60), st.floats(0.01, 20.0))
def test_weights_sum_to_one_keep_the_floor_and_the_step_of_a_day_whatever_comes(moves, rate):
    rules = SHORT.model_copy(update={"rate": rate})
    state, at = initial_state(STATED, 0.4, rules), 0.0
    for wait, scores, side, label in moves:
        at += wait
        state = update(state, ResolvedEvent(at, scores, side, label), rules)
        now, opened = np.array(state.weights), np.array(state.opened)
        assert now.sum() == pytest.approx(1.0, abs=1e-9)
        assert now.min() >= FLOOR - SLACK
        assert (np.abs(now / opened - 1.0) <= rules.max_step_a_day + 1e-9).all()
    assert len(state.labels) <= rules.history_decisions
    assert max(map(len, state.losses)) <= rules.outcomes_a_source


def test_a_step_is_counted_from_where_the_day_began():
    rules = RULES.model_copy(update={"rate": 50.0})
    right = {"ict": lambda label: 2.0 * label - 1.0}
    state, weights = initial_state(STATED, 0.4, rules), [STATED[1]]
    for event in stream(3, 60, a_day=20, **right):
        state = update(state, event, rules)
        if state.count % 20 == 0:
            weights.append(state.weights[1])
    assert weights == pytest.approx([0.25, 0.30, 0.36, 0.432])


def test_a_right_category_rises_and_a_wrong_one_falls_to_the_floor():
    events = stream(7, 500, ict=lambda label: 1.6 * label - 0.8, fpdom=lambda label: 0.8 - 1.6 * label)
    weights = dict(zip(CATEGORIES, learned(events).weights, strict=True))
    assert weights["fpdom"] == pytest.approx(FLOOR)
    assert weights["ict"] > 0.7
    assert max(weights, key=weights.get) == "ict"


def test_a_category_without_information_neither_gains_nor_loses_on_average_whatever_its_confidence():
    rng, losses = np.random.default_rng(1), []
    for bold in (0.1, 1.0):
        outcomes = [
            ResolvedEvent(float(k), (bold, *[NAN] * (N - 1)), 1.0, float(rng.random() < 0.4)) for k in range(400)
        ]
        remembered = learned(outcomes, RULES.model_copy(update={"outcomes_a_source": 400})).losses[0]
        losses.append(np.mean([loss for _, loss in remembered]))
    assert losses == pytest.approx([0.5, 0.5], abs=0.06)  # 3 standard errors of the bolder


def test_a_category_without_directions_keeps_its_share_to_the_bit():
    neutral = {"sentiment": lambda label: 0.0, "cmt": lambda label: NAN}
    state = learned(stream(5, 300, **neutral, ict=lambda label: 2.0 * label - 1.0))
    assert state.weights[0] == STATED[0]
    assert state.weights[4] == STATED[4]
    assert state.weights[1] > STATED[1]


def test_a_category_neutral_on_an_outcome_keeps_its_share_of_the_target():
    state = learned(stream(2, 40), FREE)
    scores = (0.9, NAN, -0.7, 0.0, 0.3)
    then = target_weights(update(state, ResolvedEvent(state.at + 1.0, scores, 1.0, 1.0), FREE), FREE)
    before = target_weights(state, FREE)
    assert (then[1], then[3]) == (before[1], before[3])
    assert then[0] > before[0]
    assert then[2] < before[2]
    assert sum(then) == pytest.approx(1.0)


def test_a_category_with_the_only_direction_is_compared_with_none():
    alone = ResolvedEvent(0.0, (NAN, 1.0, 0.0, NAN, 0.0), 1.0, 1.0)
    assert learned([alone] * 50).weights == STATED


def test_one_outcome_by_hand():
    """Prior .4: a target is a gain of x, for a bet of the base rate's own odds; two awake share what the two had."""
    state = learned([ResolvedEvent(0.0, (0.5, -0.5, NAN, NAN, NAN), 1.0, 1.0)], FREE)
    right, wrong = 0.35 * exp(-(0.5 - 0.25)), 0.25 * exp(-(0.5 + 0.25))
    assert state.weights[0] == pytest.approx(0.6 * right / (right + wrong))
    assert state.weights[1] == pytest.approx(0.6 * wrong / (right + wrong))
    assert state.weights[2:] == STATED[2:]


def test_without_evidence_the_shared_part_leads_back_to_the_stated_weights():
    moved = learned(stream(7, 300, ict=lambda label: 2.0 * label - 1.0))
    tied = [ResolvedEvent(moved.at + DAY_S * k / 4, (0.5,) * N, 1.0, float(k % 2)) for k in range(300)]
    back = learned(tied, RULES, moved)
    assert np.abs(np.array(moved.weights) - STATED).max() > 0.3
    assert back.weights == pytest.approx(STATED, abs=1e-9)


def test_an_outcome_outside_the_window_no_longer_counts():
    state = learned(stream(1, 100), SHORT)
    assert len(state.labels) == 30
    assert all(number >= 70 for window in state.losses for number, _ in window)
    quiet = [ResolvedEvent(state.at + DAY_S * (k + 1), (NAN,) * N, 1.0, 0.0) for k in range(60)]
    forgotten = learned(quiet, SHORT, state)
    assert forgotten.losses == ((),) * N
    assert forgotten.weights == pytest.approx(STATED, abs=1e-9)


def test_the_same_outcomes_give_the_same_bits_also_over_a_restart():
    outcomes = list(stream(9, 250))
    whole, part = learned(outcomes), learned(outcomes[:100])
    again = learned(outcomes[100:], RULES, OnlineWeights.from_json(part.to_json()))
    assert again == whole
    assert again.to_json() == whole.to_json()


def test_weights_in_force_know_only_what_had_resolved():
    events = list(stream(4, 60, a_day=20, ict=lambda label: 2.0 * label - 1.0))
    scores, at = np.array([o.category_scores for o in events]), np.array([o.at for o in events])
    side, label = np.array([o.side for o in events]), np.array([o.label for o in events])
    begin = initial_state(STATED, 0.4, RULES)
    decided = at - 5.0 * DAY_S / 20  # an event resolves when the fifth after it is decided on
    weights = weights_in_force(begin, scores, side, label, at, decided, RULES)
    assert (weights[:5] == STATED).all()
    assert tuple(weights[-1]) == learned(events[:55]).weights
    changed = label.copy()
    changed[30:] = 1.0 - changed[30:]
    assert (weights_in_force(begin, scores, side, changed, at, decided, RULES)[:35] == weights[:35]).all()


def test_an_outcome_that_cannot_be_learned_from_is_refused():
    state = learned([ResolvedEvent(10.0, (0.0,) * N, 1.0, 1.0)])
    good = ResolvedEvent(11.0, (0.0,) * N, 1.0, 1.0)
    for refused, changes in (
        (BadTimes, {"at": 9.0}),
        (BadTimes, {"at": NAN}),
        (BadShape, {"category_scores": (0.0,) * 4}),
        (BadValues, {"category_scores": (1.1, 0.0, 0.0, 0.0, 0.0)}),
        (BadValues, {"side": 0.0}),
        (BadValues, {"label": NAN}),
        (UnknownName, {"regime": "CALM"}),
    ):
        with pytest.raises(refused):
            update(state, replace(good, **changes), RULES)
    with pytest.raises(BadValues, match="floor"):
        initial_state((0.5, 0.3, 0.1, 0.09, 0.01), 0.4, RULES)
    with pytest.raises(BadValues, match="sum to 1"):
        initial_state((0.5, 0.5, 0.1, 0.1, 0.1), 0.4, RULES)
    with pytest.raises(StateError, match="learn again"):
        OnlineWeights.from_json(state.to_json().replace('"cmt"', '"other"', 1))


# ---- patterns -----------------------------------------------------------------------------------------------------


def seen(kind, regime, *labels):
    return [ResolvedEvent(float(k), (0.0,) * N, 1.0, label, kind, regime) for k, label in enumerate(labels)]


def test_a_patterns_posterior_by_hand():
    """Prior .4 as ten outcomes is Beta(4, 6); won, lost, won at discount .5 leave 1.25 and .5."""
    rules = RULES.model_copy(update={"discount": 0.5})
    posterior = pattern_posterior(learned(seen("fvg", "QUIET", 1.0, 0.0, 1.0), rules), "fvg", "QUIET", rules)
    assert (posterior.alpha, posterior.beta, posterior.n) == (5.25, 6.5, 1.75)
    assert posterior.mean == pytest.approx(5.25 / 11.75)
    assert (posterior.low, posterior.high) == pytest.approx(beta(5.25, 6.5).ppf([0.025, 0.975]), abs=1e-5)


def test_each_regime_has_its_own_and_the_unknown_one_too():
    state = learned(seen("fvg", "QUIET", *[1.0] * 30))
    state = learned([replace(o, at=100.0) for o in seen("fvg", None, *[0.0] * 30)], RULES, state)
    assert pattern_posterior(state, "fvg", "QUIET", RULES).low > pattern_posterior(state, "fvg", None, RULES).high
    nothing = pattern_posterior(state, "sweep", "QUIET", RULES)
    assert (nothing.n, nothing.mean) == (0.0, 0.4)


def test_effective_outcomes_level_off_where_the_discount_says():
    posterior = pattern_posterior(learned(seen("fvg", "QUIET", *[1.0] * 500)), "fvg", "QUIET", RULES)
    assert posterior.n == pytest.approx(1.0 / (1.0 - RULES.discount), rel=0.01)


@pytest.mark.parametrize(("a", "b"), [(0.4, 0.6), (1.0, 1.0), (4.0, 6.0), (54.0, 6.0), (800.0, 1200.0)])
def test_beta_quantiles_are_those_of_scipy(a, b):
    levels = (0.025, 0.5, 0.975)
    assert beta_quantiles(a, b, levels) == pytest.approx(beta(a, b).ppf(levels), abs=2e-5)


def test_the_base_rate_is_that_of_the_remembered_outcomes_and_the_prior():
    assert base_rate(initial_state(STATED, 0.4, RULES), RULES) == pytest.approx(0.4)
    assert base_rate(learned(seen("fvg", None, *[1.0] * 10)), RULES) == pytest.approx((10 + 4) / 20)


def test_the_stated_rate_is_the_one_of_least_regret_over_the_window_of_a_source():
    assert RULES.rate == pytest.approx((8.0 * log(N) / RULES.outcomes_a_source) ** 0.5, abs=0.005)
    assert RULES.use == "shadow"
