"""Category scores and warm starts as release 0.5.0 wrote them: read under old names, or refused with a command."""

import json

import numpy as np
import pytest
from support.serving_fixture import market

from pipelines import warm_start
from pipelines.contracts import CONTEXT_WIDTH, HALF_SPREAD, History
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadShape, StateError
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.warm_start import read_warm_start, write_warm_start

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

# `voices.json` of a warm start that release 0.5.0 published, all but 2 of each 101 quantiles left out
VOICES = """{
 "signals": "7b1f0c5d2f8f6a0c9f1f4f6a44a3f5c2a7d0a1f1a9f0f4a4e2c3b5d6e7f80912",
 "heard": [
  ["amt_accumulation", 0], ["amt_distribution", 0], ["crt", 0], ["confluence", 0], ["unicorn", 0],
  ["order_block", 1], ["fvg", 1], ["sweep", 1], ["cisd", 1], ["smt", 1],
  ["cvd", 2], ["cvd_divergence", 2], ["ofi", 2], ["absorption", 2], ["hawkes", 2], ["institutional", 2],
  ["footprint", 3], ["heatmap", 3], ["smart_money", 3],
  ["funding", 4], ["fear_greed", 4],
  ["ma_cross", 5], ["rsi", 5], ["macd", 5], ["regime_ma", 5], ["market_imbalance", 5], ["consensus", 5]
 ],
 "scale": {"fvg": 0.5321, "sweep": 0.2217, "cvd": 0.0431},
 "quantiles": {"ict": [0.4113, 3.9127]},
 "shared": {"ict": 0.3895605535213814}
}"""
OLD_HASH = json.loads(VOICES)["signals"]


def test_scores_under_the_old_key_are_read():
    scores = CategoryScores.from_json(VOICES.replace(OLD_HASH, SIGNALS.catalogue_hash))
    assert scores.scale == {"fvg": 0.5321, "sweep": 0.2217, "cvd": 0.0431}
    assert scores.quantiles == {"ict": [0.4113, 3.9127]}
    assert scores.shared == {"ict": 0.3895605535213814}


def test_scores_of_another_catalogue_are_refused_with_the_command_that_makes_new_ones():
    with pytest.raises(StateError, match="`bellwether up` folds the history again"):
        CategoryScores.from_json(VOICES)


@pytest.fixture
def folder(tmp_path):
    """A warm start of 700 decision bars, as the features stage writes it."""
    base = market(15 * 700 + 7)
    bars = resample(base, MINUTES, QUARTERS)
    features, signals = FEATURES.fresh(), SIGNALS.fresh()
    rows = FEATURES.run(bars, state=features), SIGNALS.run(bars, state=signals)
    history = History(bars, *rows, np.empty((len(bars), 2, 0, 3)), np.full((len(bars), CONTEXT_WIDTH), np.nan))
    write_warm_start(
        tmp_path, symbol="SIM/USDT", base_grid=MINUTES, grid=QUARTERS, feature_state=features,
        signal_state=signals, base=base, history=history, clock="market",
        category_scores=CategoryScores.fit(rows[1]),
    )  # fmt: skip
    return tmp_path


def test_a_warm_start_with_the_old_file_and_key_is_read(folder):
    expected = read_warm_start(folder).category_scores
    data = json.loads((folder / "category_scores.json").read_text())
    data["heard"] = data.pop("signals_used")
    (folder / "category_scores.json").unlink()
    (folder / "voices.json").write_text(json.dumps(data))
    warm_start._seal(folder, json.loads((folder / "meta.json").read_text()))
    assert read_warm_start(folder).category_scores == expected


def test_bars_of_a_release_without_half_spreads_are_read_with_none(folder):
    expected = read_warm_start(folder)
    for name in ("tail", "history.bars"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[:, :HALF_SPREAD])
    warm_start._seal(folder, json.loads((folder / "meta.json").read_text()))
    read = read_warm_start(folder)
    for bars, before in ((read.tail, expected.tail), (read.history.bars, expected.history.bars)):
        np.testing.assert_array_equal(bars[:, :HALF_SPREAD], before[:, :HALF_SPREAD])
        assert np.isnan(bars[:, HALF_SPREAD]).all()
    np.save(folder / "tail.npy", expected.tail[:, :5])
    warm_start._seal(folder, json.loads((folder / "meta.json").read_text()))
    with pytest.raises(BadShape, match=r"wanted \(t, 9\)"):
        read_warm_start(folder)


@pytest.mark.parametrize("name", ["features.state", "signals.state"])
def test_a_state_of_an_earlier_catalogue_is_refused_with_the_command_that_folds_it_again(folder, name):
    state = (folder / name).read_bytes()
    (folder / name).write_bytes(OLD_HASH.encode() + state[64:])
    warm_start._seal(folder, json.loads((folder / "meta.json").read_text()))
    with pytest.raises(StateError, match="`bellwether up` folds the history again"):
        read_warm_start(folder)


def test_a_warm_start_that_names_no_grid_is_refused_with_the_command_that_folds_it_again(folder):
    meta = json.loads((folder / "meta.json").read_text())
    del meta["grid"]
    warm_start._seal(folder, meta)
    with pytest.raises(StateError, match=r"before 0\.9\.0, which named no trading calendar. `bellwether up` folds"):
        read_warm_start(folder)
