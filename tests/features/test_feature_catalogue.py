"""The catalogue: the 25 core features, the validator's order, and copies found by measurement."""

import numpy as np
import pytest

from benchmarks.columns import measured_copies
from pipelines.errors import BadShape, NotEnoughData
from pipelines.features.catalog import COPIES, CORE_COLUMNS, FEATURES
from pipelines.features.series import SERIES_COLUMNS
from pipelines.signals.validator_schema import SIDED_COLUMNS, VALIDATOR_COLUMNS


def test_the_core_is_five_price_five_volume_six_book_and_nine_technical():
    groups = [FEATURES.catalogue[FEATURES.index[name]].category for name in CORE_COLUMNS]
    assert [groups.count(g) for g in ("price", "volume", "book", "technical")] == [5, 5, 6, 9]
    assert len(CORE_COLUMNS) == 25


def test_the_validator_reads_its_sixteen_columns_in_the_stated_order_then_those_of_named_series():
    assert VALIDATOR_COLUMNS[16:] == SERIES_COLUMNS
    assert VALIDATOR_COLUMNS[:16] == (
        "volume_ratio", "price_momentum", "order_flow_imbalance", "unicorn_rating_score", "amt_phase_score",
        "crt_level_score", "time_of_day_sin", "time_of_day_cos", "session_asia", "session_london", "session_newyork",
        "volatility_regime", "market_sentiment", "hft_oci_signal", "book_skew_strength", "liquidity_density",
    )  # fmt: skip
    assert set(SIDED_COLUMNS) <= set(VALIDATOR_COLUMNS)


def test_the_copies_measured_on_bars_are_the_copies_the_catalogue_marks(year):
    assert measured_copies(FEATURES.run(year[:8000])) == COPIES
    assert COPIES == {
        "volume_to_ma5": ("volume_to_median", "volume_ma5"),
        "williams_r_14": ("stoch_k_14",),
        "roc_10": ("momentum_10",),
        "macd_histogram": ("macd_12_26", "macd_signal_9"),
    }


def test_no_copy_hides_among_the_columns_of_book_and_context(bars, books, contexts):
    values = FEATURES.run(bars, books, contexts)
    assert set(FEATURES.columns) == set(np.array(FEATURES.columns)[~np.isnan(values[-1])])
    assert measured_copies(values) == COPIES


def test_a_planted_copy_and_a_constant_are_found():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 200))
    values = np.column_stack([a, b, 3.0 - 2.0 * b + 1e-3 * a, np.full(200, 7.0), rng.normal(size=200)])
    assert measured_copies(values, ("a", "b", "c", "d", "e")) == {"c": ("a", "b"), "d": ()}


def test_too_few_rows_cannot_show_a_copy():
    with pytest.raises(NotEnoughData, match="ten a column"):
        measured_copies(np.zeros((5, 2)), ("a", "b"))
    with pytest.raises(BadShape):
        measured_copies(np.zeros((5, 2)), ("a",))


def test_session_flags_and_the_clock_follow_utc():
    bar = np.array([1.7040672e9 + 14 * 3600, 1, 1, 1, 1, 1, 1, 1.0, np.nan])  # 14:00 UTC
    row = dict(zip(FEATURES.columns, FEATURES.step(FEATURES.fresh(), bar), strict=True))
    assert (row["session_asia"], row["session_london"], row["session_newyork"]) == (0.0, 1.0, 1.0)
    assert np.isclose(row["time_of_day_sin"], -0.5)
    assert np.isclose(row["time_of_day_cos"], -np.sqrt(3) / 2)


def test_a_flat_market_has_missing_oscillators():
    bars = np.tile([0.0, 9, 9, 9, 9, 5, 1, 2, np.nan], (80, 1))
    last = dict(zip(FEATURES.columns, FEATURES.run(bars)[-1], strict=True))
    for name in ("rsi_14", "stoch_k_14", "bollinger_b_20", "cci_20", "price_momentum", "persistence_60"):
        assert np.isnan(last[name]), name
    assert last["atr_14"] == last["log_return_1"] == last["range_20"] == 0.0


def test_the_median_volume_is_numpys(bars):
    volume = bars[:, 5]
    ours = FEATURES.run(bars)[:, FEATURES.index["volume_to_median"]]
    for t in range(59, 2500, 61):
        assert np.isclose(ours[t], np.log(volume[t] / np.median(volume[t - 59 : t + 1])), rtol=1e-12, atol=1e-15)


def test_volatility_regime_is_the_trailing_mid_rank(bars):
    out = FEATURES.run(bars)
    volatility = out[:, FEATURES.index["volatility_20"]]
    for t in range(499, 2500, 97):
        window = volatility[t - 479 : t + 1]
        rank = (np.sum(window < volatility[t]) + 0.5 * np.sum(window == volatility[t])) / 480
        assert np.isclose(out[t, FEATURES.index["volatility_regime"]], rank, atol=1.5 / 480)
