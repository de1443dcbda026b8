"""Events and category scores: one row at a time equals the batch; neutral and unavailable categories differ."""

import json

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH
from pipelines.contracts import SCORE_NAMES
from pipelines.errors import BadShape, NotEnoughData, StateError
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import event_row, event_rows, events, traditional_events
from pipelines.signals.validator_schema import SIDED_COLUMNS, VALIDATOR_COLUMNS


@pytest.fixture(scope="module")
def features(year):
    return FEATURES.run(year[:6000])


@pytest.fixture(scope="module")
def signals(year):
    return SIGNALS.run(year[:6000])


def column(signals, name):
    return signals[:, SIGNALS.index[name]]


@pytest.mark.parametrize("raise_events", [events, traditional_events])
def test_a_live_row_raises_the_event_the_batch_raises(features, signals, raise_events):
    whole = raise_events(features, signals)
    found = []
    for i in range(2000):
        live = raise_events(features[i : i + 1], signals[i : i + 1])
        found += [(i, int(live.direction[0]), str(live.kind[0]), float(live.atr[0]))] if len(live) else []
    early = whole.index < 2000
    rows = zip(whole.index[early], whole.direction[early], whole.kind[early], whole.atr[early], strict=True)
    assert found == [(int(i), int(d), str(k), float(a)) for i, d, k, a in rows]
    assert len(found) > 20


def test_opposite_signals_on_one_bar_raise_no_event_and_agreeing_ones_raise_one():
    features = np.full((4, len(FEATURES.columns)), np.nan)
    features[:3, FEATURES.index["atr_14"]] = 0.01  # the fourth bar has no ATR yet
    signals = np.full((4, len(SIGNALS.columns)), np.nan)
    signals[:, SIGNALS.index["fvg.direction"]] = [1.0, -1.0, 0.0, 1.0]
    signals[:, SIGNALS.index["sweep.direction"]] = [-1.0, -1.0, 1.0, 1.0]
    raised = events(features, signals)
    assert raised.index.tolist() == [1, 2]
    assert raised.direction.tolist() == [-1, 1]
    assert raised.kind.tolist() == ["fvg", "sweep"]


def test_real_bars_raise_ict_events_on_fifteen_to_twenty_five_bars_in_a_hundred(real_year):
    raised = events(FEATURES.run(real_year), SIGNALS.run(real_year))
    assert 0.15 < len(raised) / len(real_year) < 0.25
    assert 0.4 < np.mean(raised.direction > 0) < 0.6
    assert set(raised.kind) == {"order_block", "fvg", "sweep", "cisd"}  # without a reference symbol no divergence


def test_an_event_row_is_the_same_bytes_alone_and_in_the_batch(features, signals):
    raised = events(features, signals)
    rows = event_rows(features, signals, raised)
    assert rows.shape == (len(raised), len(VALIDATOR_COLUMNS))
    for k, (i, side) in enumerate(zip(raised.index, raised.direction, strict=True)):
        assert event_row(features[i], signals[i], int(side)).tobytes() == rows[k].tobytes()


def test_only_the_sided_columns_turn_with_the_event():
    width = len(FEATURES.columns)
    features, signals = np.split(np.arange(1.0, 1.0 + width + len(SIGNALS.columns)), [width])
    turned = event_row(features, signals, 1) != event_row(features, signals, -1)
    assert {name for name, t in zip(VALIDATOR_COLUMNS, turned, strict=True) if t} == set(SIDED_COLUMNS)
    values = dict(zip((*FEATURES.columns, *SIGNALS.columns), (*features, *signals), strict=True))
    assert event_row(features, signals, 1).tolist() == [values[name] for name in VALIDATOR_COLUMNS]
    np.testing.assert_array_equal(np.abs(event_row(features, signals, -1)), event_row(features, signals, 1))


def test_rows_of_different_bars_are_refused(features, signals):
    with pytest.raises(BadShape, match="same bars"):
        events(features[:10], signals[:9])


def test_confidence_is_the_percentile_of_the_categorys_own_strength(signals):
    direction, confidence = CategoryScores.fit(signals).score(signals)
    for j, category in enumerate(SCORE_NAMES):
        active = np.abs(direction[:, j]) > 0
        np.testing.assert_array_equal(np.isnan(confidence[:, j]), ~active)
        if category in ("cmt", "ict", "order_flow", "traditional"):
            assert active.sum() > 500
            for level in (0.2, 0.7, 0.95):
                assert np.isclose(np.mean(confidence[active, j] < level), level, atol=0.01), category
        else:
            assert np.isnan(direction[:, j]).all()


def test_one_row_gives_the_same_bytes_as_the_batch(signals):
    scores = CategoryScores.fit(signals)
    direction, confidence = scores.score(signals)
    for i in range(0, 6000, 7):
        one = scores.score(signals[i])
        assert one[0].tobytes() == direction[i].tobytes()
        assert one[1].tobytes() == confidence[i].tobytes()


def test_a_category_score_follows_its_signal_and_grows_with_its_strength(signals):
    scores = CategoryScores.fit(signals)
    row = np.full(len(SIGNALS.columns), np.nan)
    confidences = []
    for strength in (0.3, 0.6, 1.2, 50.0):
        row[SIGNALS.index["fvg.direction"]], row[SIGNALS.index["fvg.strength"]] = -1.0, strength
        direction, confidence = scores.score(row)
        assert direction[SCORE_NAMES.index("ict")] == -1.0
        confidences.append(float(confidence[SCORE_NAMES.index("ict")]))
    assert confidences == sorted(confidences)
    assert confidences[0] < 0.1
    assert confidences[-1] == 1.0


def test_without_taker_volume_order_flow_is_unavailable_not_neutral(year, signals):
    forex = year[:500].copy()
    forex[:, 5:] = np.nan
    direction, confidence = CategoryScores.fit(signals).score(SIGNALS.run(forex))
    j = SCORE_NAMES.index("order_flow")
    assert np.isnan(direction[:, j]).all()
    assert np.isnan(confidence[:, j]).all()
    assert (np.abs(direction[:, SCORE_NAMES.index("ict")]) > 0).any()


def test_the_books_flow_joins_the_order_flow_score_and_the_stars_alone(year, signals):
    flow = np.full((6000, CONTEXT_WIDTH), np.nan)
    flow[:, CONTEXT_INDEX["order_flow"]] = np.random.default_rng(3).normal(0, 5, 6000)
    with_flow = SIGNALS.run(year[:6000], None, flow)
    without, within = CategoryScores.fit(signals).score(signals)[0], CategoryScores.fit(with_flow).score(with_flow)[0]
    flow_category, stars_category = SCORE_NAMES.index("order_flow"), SCORE_NAMES.index("cmt")
    assert np.mean(without[100:, flow_category] != within[100:, flow_category]) > 0.1
    others = [j for j in range(len(SCORE_NAMES)) if j not in (flow_category, stars_category)]
    assert without[:, others].tobytes() == within[:, others].tobytes()
    changed = np.flatnonzero(without[:, stars_category] != within[:, stars_category])
    unicorn = SIGNALS.index["unicorn.direction"]
    signalled = (np.nan_to_num(signals[:, unicorn]) != 0) | (np.nan_to_num(with_flow[:, unicorn]) != 0)
    assert signalled[changed[~np.isnan(without[changed, stars_category])]].all()


def test_category_scores_survive_json_and_refuse_another_catalogue(signals):
    scores = CategoryScores.fit(signals)
    assert CategoryScores.from_json(scores.to_json()) == scores
    other = json.loads(scores.to_json()) | {"signals": "0" * 64}
    with pytest.raises(StateError, match="`bellwether up`"):
        CategoryScores.from_json(json.dumps(other))


def test_category_scores_are_not_fitted_on_neutral_signals():
    with pytest.raises(NotEnoughData, match="longer history"):
        CategoryScores.fit(np.full((10, len(SIGNALS.columns)), np.nan))
