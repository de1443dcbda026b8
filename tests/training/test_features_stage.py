"""The features stage with and without books and context: recorded data is used, missing data is NaN."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, tape_of
from pipelines.contracts import BOOK_LEVELS, CLOSE, HALF_SPREAD, OPEN_TIME, Books, ContextFeed
from pipelines.data import records, schemas
from pipelines.data.alignment import align
from pipelines.data.embargo import windows_in
from pipelines.data.series import series_in
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadShape, StateError
from pipelines.family_labels import Sources, event_labels
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import TIME, triple_barrier
from pipelines.models.snapshot import read_history
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events
from pipelines.stage_outputs import facts_of, features_of, read_meta
from pipelines.training import stages
from pipelines.training.labelling import read_funding, read_sources
from pipelines.warm_start import read_warm_start

QUARTERS = Grid("15m")

MINUTES = Grid("1m")
SPAN = {"first": "2024-01-01", "last": "2024-01-02"}

PARAMS = load_params()
SPEC = PARAMS.simulator.model_copy(update={"history_days": 30, "live_days": 0, "drift_after_live_days": None})
BASE = simulate(SPEC, tape=False).bars
BARS = resample(BASE, MINUTES, QUARTERS)


def made_up_records() -> tuple[Books, ContextFeed]:
    """Return a book every five minutes around the close of its minute, and a funding rate every eight hours."""
    rng = np.random.default_rng(4)
    minutes = BASE[4::5]
    levels = np.empty((len(minutes), 2, BOOK_LEVELS, 3))
    for side, sign in enumerate((-1.0, 1.0)):
        levels[:, side, :, 0] = minutes[:, 4, None] * (1 + sign * 1e-4 * np.arange(1, BOOK_LEVELS + 1))
    levels[..., 1:] = rng.lognormal(0, 0.5, (len(minutes), 2, BOOK_LEVELS, 2))
    known = minutes[:, OPEN_TIME] + 60.0
    paid = np.arange(known[0], known[-1], 8 * 3600.0)
    funding = np.full(len(paid), CONTEXT_INDEX["funding_rate"])
    flow, fast = rng.normal(size=(2, len(known)))
    books = Books(known, levels, tape_of(len(known), order_flow=flow, order_flow_fast=fast))
    return books, ContextFeed(paid, funding, rng.normal(1e-4, 1e-4, len(paid)))


def built(workspace: Path, books: Books | None, feed: ContextFeed | None, **keys: object) -> Path:
    """Run the features stage on this snapshot and return its `artifacts/`; `keys` go into the manifest as they are."""
    described: dict[str, object] = {
        "symbol": SPEC.symbol,
        "timeframe": "1m",
        "file": "bars/B/1m.parquet",
        **SPAN,
        **keys,
    }
    schemas.write_bars(schemas.to_frame(BASE, MINUTES, None), workspace / "data" / "bars/B/1m.parquet")
    if books is not None:
        described["book"] = "book/B.parquet"
        records.write_book(records.from_books(books, None), workspace / "data/book/B.parquet")
    if feed is not None:
        described["context"] = "context/B.parquet"
        records.write_context(records.from_feed(feed, None), workspace / "data/context/B.parquet")
    (workspace / "data/manifest.json").write_text(json.dumps(described))
    (workspace / "data.dvc").write_text("outs:\n- md5: 0123\n")
    with contextlib.chdir(workspace):
        stages.build_features(PARAMS)
    return workspace / "artifacts"


def meta_of(artifacts: Path) -> dict[str, object]:
    return facts_of(read_meta(artifacts))


@pytest.mark.parametrize("keys", [{}, {"book": None, "context": None}], ids=["absent", "null"])
def test_a_snapshot_of_bars_alone_gives_what_bars_alone_gave(tmp_path, keys):
    history = read_history(built(tmp_path, None, None, **keys))
    assert history.features.tobytes() == FEATURES.run(BARS).tobytes()
    assert history.signals.tobytes() == SIGNALS.run(BARS).tobytes()
    assert history.levels.shape == (len(BARS), 2, 0, 3)
    assert np.isnan(history.context).all()
    meta = meta_of(tmp_path / "artifacts")
    assert (meta["has_book"], meta["context"]) == (False, [])


def test_books_and_context_reach_features_signals_and_the_arrays_models_read(tmp_path):
    books, feed = made_up_records()
    history = read_history(built(tmp_path, books, feed))
    levels, context = align(BARS[:, OPEN_TIME], QUARTERS, books, feed)
    assert (history.levels.tobytes(), history.context.tobytes()) == (levels.tobytes(), context.tobytes())
    assert history.features.tobytes() == FEATURES.run(BARS, levels, context).tobytes()
    assert history.signals.tobytes() == SIGNALS.run(BARS, levels, context).tobytes()
    for name in ("spread", "order_flow_ratio", "hft_oci_signal", "liquidity_density", "market_sentiment"):
        assert np.isfinite(history.features[40:, FEATURES.index[name]]).all(), name
    meta = meta_of(tmp_path / "artifacts")
    assert (meta["has_book"], meta["context"]) == (True, list(CONTEXT_FIELDS[:3]))
    assert meta["has_funding"] is True
    rates = read_sources(tmp_path / "artifacts").funding  # what labels and backtest pay
    np.testing.assert_array_equal(rates, np.column_stack([feed.known, feed.value]))


def test_a_named_series_is_read_for_as_long_as_the_data_version_states(tmp_path):
    days = BASE[::1440, OPEN_TIME][::4]
    feed = ContextFeed(days, np.full(len(days), CONTEXT_INDEX["series_1"]), np.arange(len(days), dtype=float))
    series = [{"field": "series_1", "name": "insider", "unit": "USD", "lag_s": 0.0, "max_age_s": 2 * 86400.0}]
    events = [{"from": "2024-01-09T13:00:00+00:00", "until": "2024-01-09T14:00:00+00:00", "kind": "CPI"}]
    folder = built(tmp_path, None, feed, source={"series": series, "events": events})
    context = read_history(folder).context[:, CONTEXT_INDEX["series_1"]]
    age = (QUARTERS.closes(BARS[:, OPEN_TIME]) - days[0]) % (4 * 86400.0)
    np.testing.assert_array_equal(np.isfinite(context), age < 2 * 86400.0)
    assert meta_of(folder)["series"] == {"series_1": "insider"}
    warm = read_warm_start(features_of(folder, SPEC.symbol) / "warm")
    assert (warm.series, warm.events) == (series_in({"series": series}), windows_in({"events": events}))
    assert read_sources(folder).windows == warm.events


def test_records_alone_change_no_column_that_does_not_need_them(tmp_path):
    features = read_history(built(tmp_path, *made_up_records())).features
    without = FEATURES.run(BARS)
    for j, column in enumerate(FEATURES.catalogue):
        if not (column.needs or "").startswith(("book", "context")):
            assert features[:, j].tobytes() == without[:, j].tobytes(), column.name


@pytest.mark.parametrize(("named", "rates", "error"), [
    (True, None, StateError),
    (True, np.empty((0, 2)), BadShape),
    (True, np.ones((4, 3)), BadShape),
    (False, np.ones((4, 2)), BadShape),
    (None, np.ones(4), BadShape),
])  # fmt: skip
def test_funding_rates_that_are_missing_or_of_another_shape_are_refused_with_the_file(tmp_path, named, rates, error):
    meta = {} if named is None else {"has_funding": named}
    if rates is not None:
        np.save(tmp_path / "funding.npy", rates)
    with pytest.raises(error, match=r"funding\.npy .*`bellwether run --once`"):
        read_funding(tmp_path, meta)


def test_features_of_a_release_that_wrote_no_funding_have_none(tmp_path):
    assert len(read_funding(tmp_path, {})) == len(read_funding(tmp_path, {"has_funding": False})) == 0


HERE = ("simulator", "spot")


def test_the_labels_of_events_pay_the_row_of_their_venue_and_what_is_not_worth_it_is_no_event():
    base, bars = BASE.copy(), BARS.copy()
    base[:, HALF_SPREAD] = bars[:, HALF_SPREAD] = np.nan
    context = np.full((len(bars), len(CONTEXT_FIELDS)), np.nan)
    here = Sources(base, bars, FEATURES.run(bars), SIGNALS.run(bars), context, QUARTERS, MINUTES, *HERE)
    cheap, dear = event_labels(here, PARAMS), event_labels(replace(here, venue="binance"), PARAMS)
    assert 0 < len(dear["y"]) < len(cheap["y"])
    for labels, fee in ((cheap, 2.0), (dear, 10.0)):
        least = 2.0 * (fee + 0.5)
        assert (PARAMS.labels.target_atr * labels["atr"] * 1e4 >= PARAMS.labels.min_target_to_cost * least).all()
        assert labels["target_cost_bps"] == pytest.approx(least)
    slipped = dear["cost_bps"] - 21.0
    assert set(np.round(slipped, 9)) == {0.0, PARAMS.costs.stop_slippage_bps}
    assert (dear["y"][slipped > 0.1] == 0.0).all()
    assert cheap["cost_bps"] == pytest.approx(5.0)  # its stops fill at their level


def test_a_perpetual_pays_its_funding_in_the_labels_and_spot_does_not():
    context = np.full((len(BARS), len(CONTEXT_FIELDS)), np.nan)
    paid = BASE[0, OPEN_TIME] + 8 * 3600.0 * np.arange(1, 40)
    rates = np.column_stack([paid, np.full(len(paid), 3e-4)])
    spot = Sources(
        BASE, BARS, FEATURES.run(BARS), SIGNALS.run(BARS), context, QUARTERS, MINUTES, "binance", "spot", rates
    )
    perpetual = replace(spot, market="perpetual")
    assert set(np.round(event_labels(spot, PARAMS)["cost_bps"] - 20.0, 9)) == {0.0, PARAMS.costs.stop_slippage_bps}
    labels = event_labels(perpetual, PARAMS)
    extra = labels["cost_bps"] - 10.0
    assert {-3.0, 3.0} <= set(np.round(extra, 9))
    held = np.abs(extra) > 1.0
    assert (np.sign(extra[held]) == labels["direction"][held]).all()  # at a positive rate longs pay shorts


@pytest.mark.parametrize("quoted", [True, False])
def test_the_labels_of_events_say_whether_their_returns_are_executed_or_of_mids(quoted):
    base, bars = BASE.copy(), BARS.copy()
    if not quoted:
        base[:, HALF_SPREAD] = bars[:, HALF_SPREAD] = np.nan
    features, signals = FEATURES.run(bars), SIGNALS.run(bars)
    context = np.full((len(bars), len(CONTEXT_FIELDS)), np.nan)
    labels = event_labels(Sources(base, bars, features, signals, context, QUARTERS, MINUTES, *HERE), PARAMS)
    assert len(labels["y"]) > 100
    assert labels["spread_known"].tolist() == [quoted] * len(labels["y"])


def test_a_label_out_of_time_pays_the_funding_at_the_close_of_its_last_bar():
    """Rates at the full hours at which time ran out; to the open of its last minute such a position paid nothing."""
    context = np.full((len(BARS), len(CONTEXT_FIELDS)), np.nan)
    folded = FEATURES.run(BARS), SIGNALS.run(BARS)
    here = Sources(BASE, BARS, *folded, context, QUARTERS, MINUTES, "hyperliquid", "perpetual")
    at = events(here.features, here.signals)
    outcome = triple_barrier(
        BASE, here.closes[at.index], BARS[at.index, CLOSE], at.direction, at.atr, PARAMS.labels.target_atr,
        PARAMS.labels.stop_atr, QUARTERS.deadline(here.closes[at.index], PARAMS.labels.horizon_bars),
    )  # fmt: skip
    late = (outcome.barrier == TIME) & (outcome.exit_time % 3600.0 == 3540.0)
    assert late.any()  # ran out at the very funding time
    closes = np.unique(outcome.exit_time[late] + 60.0)
    hourly = np.column_stack([closes, np.full(len(closes), 8 * 3e-4)])  # of eight hours, settled each
    rated = event_labels(replace(here, funding=hourly), PARAMS)
    free = event_labels(here, PARAMS)
    chosen = np.isin(rated["index"], at.index[late])
    assert chosen.any()
    paid = (rated["cost_bps"] - free["cost_bps"]) * rated["direction"]
    assert (paid[chosen] >= 3.0 - 1e-9).all()


def test_without_data_the_stage_names_the_command_that_brings_them(tmp_path):
    with contextlib.chdir(tmp_path), pytest.raises(StateError, match="bellwether data restore"):
        stages.build_features(PARAMS)
