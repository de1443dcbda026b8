"""Events and voices: one row at a time gives what the batch gives, and a silent or absent category says so."""

import json

import numpy as np
import pytest

from pipelines.contracts import CONTEXT_INDEX, CONTEXT_WIDTH
from pipelines.errors import BadShape, NotEnoughData, StateError
from pipelines.features.catalog import FEATURES
from pipelines.features.validator_schema import SIDED_COLUMNS, VALIDATOR_COLUMNS
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import event_row, event_rows, events, traditional_events
from pipelines.signals.voices import VOICE_CATEGORIES, Voices


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
    asked = whole.index < 2000
    rows = zip(whole.index[asked], whole.direction[asked], whole.kind[asked], whole.atr[asked], strict=True)
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


def test_real_bars_raise_ict_events_on_six_to_fifteen_bars_in_a_hundred(real_year):
    raised = events(FEATURES.run(real_year), SIGNALS.run(real_year))
    assert 0.06 < len(raised) / len(real_year) < 0.15
    assert 0.4 < np.mean(raised.direction > 0) < 0.6
    assert set(raised.kind) == {"fvg", "sweep"}


def test_an_event_row_is_the_same_bytes_alone_and_in_the_batch(features, signals):
    raised = events(features, signals)
    rows = event_rows(features, raised)
    assert rows.shape == (len(raised), len(VALIDATOR_COLUMNS))
    for k, (i, side) in enumerate(zip(raised.index, raised.direction, strict=True)):
        assert event_row(features[i], int(side)).tobytes() == rows[k].tobytes()


def test_only_the_sided_columns_turn_with_the_event():
    row = np.arange(1.0, 1.0 + len(FEATURES.columns))
    turned = event_row(row, 1) != event_row(row, -1)
    assert {name for name, t in zip(VALIDATOR_COLUMNS, turned, strict=True) if t} == set(SIDED_COLUMNS)
    assert event_row(row, 1).tolist() == [row[FEATURES.index[name]] for name in VALIDATOR_COLUMNS]
    np.testing.assert_array_equal(np.abs(event_row(row, -1)), event_row(row, 1))


def test_rows_of_different_bars_are_refused(features, signals):
    with pytest.raises(BadShape, match="same bars"):
        events(features[:10], signals[:9])


def test_confidence_is_the_percentile_of_the_categorys_own_strength(signals):
    direction, confidence = Voices.fit(signals).speak(signals)
    for j, category in enumerate(VOICE_CATEGORIES):
        spoke = np.abs(direction[:, j]) > 0
        np.testing.assert_array_equal(np.isnan(confidence[:, j]), ~spoke)
        if category in ("cmt", "ict", "order_flow", "traditional"):
            assert spoke.sum() > 500
            for level in (0.2, 0.7, 0.95):
                assert np.isclose(np.mean(confidence[spoke, j] < level), level, atol=0.01), category
        else:
            assert np.isnan(direction[:, j]).all()


def test_one_row_speaks_the_same_bytes_as_the_batch(signals):
    voices = Voices.fit(signals)
    direction, confidence = voices.speak(signals)
    for i in range(0, 6000, 7):
        one = voices.speak(signals[i])
        assert one[0].tobytes() == direction[i].tobytes()
        assert one[1].tobytes() == confidence[i].tobytes()


def test_a_voice_follows_its_signal_and_grows_with_its_strength(signals):
    voices = Voices.fit(signals)
    row = np.full(len(SIGNALS.columns), np.nan)
    heard = []
    for strength in (0.3, 0.6, 1.2, 50.0):
        row[SIGNALS.index["fvg.direction"]], row[SIGNALS.index["fvg.strength"]] = -1.0, strength
        direction, confidence = voices.speak(row)
        assert direction[VOICE_CATEGORIES.index("ict")] == -1.0
        heard.append(float(confidence[VOICE_CATEGORIES.index("ict")]))
    assert heard == sorted(heard)
    assert heard[0] < 0.1
    assert heard[-1] == 1.0


def test_without_taker_volume_order_flow_is_unavailable_not_neutral(year, signals):
    forex = year[:500].copy()
    forex[:, 5:] = np.nan
    direction, confidence = Voices.fit(signals).speak(SIGNALS.run(forex))
    j = VOICE_CATEGORIES.index("order_flow")
    assert np.isnan(direction[:, j]).all()
    assert np.isnan(confidence[:, j]).all()
    assert (np.abs(direction[:, VOICE_CATEGORIES.index("ict")]) > 0).any()


def test_the_books_flow_joins_the_order_flow_voice_and_is_heard_elsewhere_only_as_a_star(year, signals):
    flow = np.full((6000, CONTEXT_WIDTH), np.nan)
    flow[:, CONTEXT_INDEX["order_flow"]] = np.random.default_rng(3).normal(0, 5, 6000)
    heard = SIGNALS.run(year[:6000], None, flow)
    without, within = Voices.fit(signals).speak(signals)[0], Voices.fit(heard).speak(heard)[0]
    j = VOICE_CATEGORIES.index("order_flow")
    assert np.mean(without[100:, j] != within[100:, j]) > 0.1
    rest = [k for k, category in enumerate(VOICE_CATEGORIES) if category not in ("order_flow", "cmt")]
    assert without[:, rest].tobytes() == within[:, rest].tobytes()


def test_voices_survive_json_and_refuse_another_catalogue(signals):
    voices = Voices.fit(signals)
    assert Voices.from_json(voices.to_json()) == voices
    other = json.loads(voices.to_json()) | {"signals": "0" * 64}
    with pytest.raises(StateError, match=r"Voices\.fit"):
        Voices.from_json(json.dumps(other))


def test_voices_are_not_fitted_on_silence():
    with pytest.raises(NotEnoughData, match="longer history"):
        Voices.fit(np.full((10, len(SIGNALS.columns)), np.nan))
