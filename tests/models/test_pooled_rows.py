"""Rows of several markets are one dataset: in time order, each read from its own market, split by time for all."""

from dataclasses import replace

import numpy as np
import pytest
from support.stage_folders import stage_folders

from pipelines.context_layout import CONTEXT_WIDTH
from pipelines.contracts import BAR_WIDTH, OPEN_TIME
from pipelines.features.catalog import FEATURES
from pipelines.labels.splits import combinatorial, walk_forward, whole_moments
from pipelines.models.base import present_columns
from pipelines.models.regime.model_family import non_overlapping_rows
from pipelines.models.snapshot import bar_rows, pooled_labels, read_history
from pipelines.models.trained_on import shares_market, symbols_of
from pipelines.models.views import VIEWS
from pipelines.settings import load_params
from pipelines.training.fit import prepare

STEP, BARS = 900.0, 400


def write(artifacts, seed, symbol, first_bar=0):
    """Write a market of random features whose every third bar is labelled."""
    rng = np.random.default_rng(seed)
    features, labels = stage_folders(artifacts, symbol)
    bars = rng.random((BARS, BAR_WIDTH)) + 1.0
    bars[:, OPEN_TIME] = STEP * (first_bar + np.arange(BARS))
    arrays = {
        "decision": bars, "features": rng.normal(size=(BARS, len(FEATURES.columns))), "signals": np.zeros((BARS, 2)),
        "books": np.zeros((BARS, 2, 0, 3)), "context": np.zeros((BARS, CONTEXT_WIDTH)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(features / f"{name}.npy", array)
    index = np.arange(100, BARS, 3)
    known = bars[index, OPEN_TIME] + STEP
    np.savez(
        labels / "predictor.npz", index=index, y=rng.random(len(index)).round(), uniqueness=np.full(len(index), 0.5),
        known=known, ended=known + 8 * STEP, last_return=rng.normal(size=len(index)),
    )  # fmt: skip
    return index


@pytest.fixture
def universe(tmp_path):
    """Two markets, the second one bar later; return (artifacts, dataset)."""
    write(tmp_path, 1, "A/USD")
    write(tmp_path, 2, "B/USD", first_bar=1)
    meta = '{"decision_timeframe": "15m", "symbols": ["A/USD", "B/USD"], "markets": {"A/USD": {}, "B/USD": {}}}'
    (tmp_path / "features" / "meta.json").write_text(meta)
    return tmp_path, bar_rows(tmp_path, "predictor", VIEWS["predictor"])


def test_rows_are_in_time_order_and_each_is_read_from_its_own_market(universe):
    artifacts, data = universe
    assert (np.diff(data.known) >= 0).all()
    labels = pooled_labels(artifacts, "predictor")
    rows = np.array([0, 5, 6, 11, len(data) - 1])
    windows = data.inputs(rows)
    for number, window in zip(rows, windows, strict=True):
        symbol = data.symbols[data.symbol[number]]
        at = labels.arrays["index"][[number]]
        own = VIEWS["predictor"].build(read_history(artifacts, symbol), at)[0]
        assert own.tobytes() == window.tobytes()
    assert {name: len(found) for name, found in data.by_market()} == {"A/USD": 100, "B/USD": 100}


def test_a_universe_of_one_is_the_dataset_of_its_market_byte_for_byte(tmp_path):
    index = write(tmp_path, 1, "A/USD")
    data = bar_rows(tmp_path, "predictor", VIEWS["predictor"])
    with np.load(tmp_path / "labels" / "A-USD" / "predictor.npz") as f:
        for name in ("y", "uniqueness", "known", "ended"):
            assert getattr(data, name).tobytes() == f[name].tobytes(), name
    assert data.all_inputs().tobytes() == VIEWS["predictor"].build(read_history(tmp_path), index).tobytes()
    assert data.select_columns(np.ones(len(data.columns), bool)) is data


def test_the_newest_bars_are_those_of_the_windows_of_the_same_rows_and_columns(universe):
    _, data = universe
    some = data.select_rows(np.array([3, 50, 7, 190])).select_columns(np.arange(len(data.columns)) % 2 == 0)
    assert some.newest().tobytes() == some.all_inputs()[:, -1].tobytes()
    assert replace(some, newest_of=None).newest().tobytes() == some.newest().tobytes()


def test_decay_follows_time_for_all_markets_and_rows_of_one_moment_weigh_the_same(universe):
    _, data = universe
    decayed = data.decayed(50.0)
    assert (np.diff(decayed.weight) >= 0).all()
    assert decayed.weight[-1] == data.uniqueness[-1]


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_no_training_label_of_any_market_touches_the_test_rows_of_any_other(offset):
    rng = np.random.default_rng(3)
    known = np.sort(np.concatenate([STEP * rng.integers(0, 900, 400), STEP * rng.integers(0, 900, 300) + offset]))
    ended, embargo = known + STEP * rng.integers(1, 20, len(known)), 40 * STEP
    for split in walk_forward(known, ended, 4, 0.4, embargo):
        assert (ended[split.train] + embargo < known[split.test].min()).all()
    for split in combinatorial(known, ended, 5, 1, embargo):
        first, last = known[split.test].min(), ended[split.test].max()
        assert ((ended[split.train] + embargo < first) | (known[split.train] > last + embargo)).all()


def test_no_moment_is_cut_in_two():
    known = np.repeat(STEP * np.arange(50), 3)
    assert whole_moments(known, np.array([0, 10, 31, 150])).tolist() == [0, 9, 30, 150]
    tested = np.concatenate([known[split.test] for split in walk_forward(known, known + STEP, 4, 0.4, STEP)])
    folds = [set(known[split.test]) for split in walk_forward(known, known + STEP, 4, 0.4, STEP)]
    assert sum(len(fold) for fold in folds) == len(set(tested))


def test_a_column_that_one_market_lacks_is_dropped_by_the_markets_name(universe):
    _, data = universe
    rows, read = dict(data.by_market()), data.inputs

    def without(numbers):
        windows = read(numbers).copy()
        windows[data.symbol[numbers] == 1, :, 2] = np.nan
        return windows

    found = prepare("predictor", replace(data, inputs=without, newest_of=None), ())
    assert found.dropped == {data.columns[2]: "absent in B/USD: pooled rows have the columns of every market"}
    assert len(found.data) == len(data)
    _, alone = present_columns(data.newest(), data.columns, rows)
    assert alone == {}
    found = prepare("predictor", data, (), {data.columns[4]: "series_1 holds insider of A/USD, None of B/USD"})
    assert data.columns[4] not in found.data.columns


def test_labels_of_two_markets_at_one_time_do_not_repeat_each_other(universe):
    _, data = universe
    chosen = non_overlapping_rows(data)
    for _, rows in data.by_market():
        own = np.intersect1d(rows, chosen)
        assert (data.known[own][1:] >= data.ended[own][:-1]).all()
    assert len(chosen) == sum(len(non_overlapping_rows(data.select_rows(rows))) for _, rows in data.by_market())


def test_a_version_speaks_of_the_symbols_it_names_in_any_release():
    assert symbols_of({"symbol": "BTC/USDT"}) == ("BTC/USDT",)
    assert symbols_of({"symbols": "A/USD,B/USD"}) == symbols_of({"symbols": ["A/USD", "B/USD"]}) == ("A/USD", "B/USD")
    assert symbols_of({}) == ()
    meta = {"symbols": ["B/USD", "C/USD"], "decision_timeframe": "15m"}
    assert shares_market({"symbols": "A/USD,B/USD", "decision_timeframe": "15m"}, meta)
    assert not shares_market({"symbols": "A/USD,B/USD", "decision_timeframe": "1h"}, meta)
    assert not shares_market({"symbol": "SIM/USDT", "decision_timeframe": "15m"}, meta)
    assert not shares_market({}, meta)
    assert load_params().models.unseen_symbols == "refuse"
