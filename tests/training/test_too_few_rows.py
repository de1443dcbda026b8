"""A family with too few rows says how long a history suffices, and costs the other families nothing."""

import numpy as np
import pytest
from support.stage_folders import stage_folders

from pipelines.contracts import BAR_WIDTH
from pipelines.data.timeframes import Grid
from pipelines.families import FAMILIES
from pipelines.family_labels import LABELS, READ_BY, Sources, event_labels, without_broken_rows
from pipelines.features.catalog import FEATURES
from pipelines.labels.splits import walk_forward
from pipelines.models import pattern, predictor, validator
from pipelines.models.regime import gaussian
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.training import stages

PARAMS = load_params()
QUARTERS = Grid("15m")
WARM = int(FEATURES.warmup.max())


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A features folder of 3,000 decision bars."""
    monkeypatch.setattr(stages, "OUT", tmp_path)
    np.save(stage_folders(tmp_path)[0] / "decision.npy", np.zeros((3000, BAR_WIDTH)))


def test_the_history_that_suffices_follows_from_the_rows_these_bars_gave(built):
    text = stages.sufficient_bars("validator", 100, PARAMS)
    least = PARAMS.gate.min_events / (1 - PARAMS.splits.min_train_fraction)
    enough = WARM + int(np.ceil((3000 - WARM) * least / 100))  # the gate asks for more rows than the first fold
    assert text == f"{enough:,} bars of history suffice at this rate of rows, these are 3,000"
    assert stages.sufficient_bars("validator", 0, PARAMS) is None


def test_with_that_history_the_first_fold_has_rows_enough(built):
    """Rows on every bar: the first window, purged and embargoed, keeps what the family needs before its tail."""
    text = stages.sufficient_bars("regime", 3000 - WARM, PARAMS)
    n = int(text.split()[0].replace(",", "")) - WARM
    closes = 900.0 * np.arange(n)
    first = walk_forward(closes, closes + 900.0, PARAMS.splits.folds, PARAMS.splits.min_train_fraction, 900.0 * WARM)[0]
    head = walk_forward(closes[first.train], closes[first.train] + 900.0, 1, stages.FIRST_SHARE, 900.0 * WARM)[0]
    assert 0.95 * stages.FIRST_ROWS["regime"] < len(head.train) < 1.3 * stages.FIRST_ROWS["regime"]


def test_the_rows_a_family_is_fitted_on_at_least_are_those_of_its_module():
    assert stages.FIRST_ROWS == {
        "validator": validator.LEAST_EVENTS, "pattern": pattern.LEAST_ROWS, "regime": gaussian.LEAST_ROWS,
        "predictor": predictor.LEAST_ROWS,
    }  # fmt: skip


def sources(opens):
    """Bars of a market in which nothing happens."""
    bars = np.full((len(opens), BAR_WIDTH), 100.0)
    bars[:, 0] = opens
    nothing = np.zeros((len(opens), len(SIGNALS.columns)))
    features = np.full((len(opens), len(FEATURES.columns)), 0.01)
    return Sources(bars, bars, features, nothing, np.empty((len(opens), 0)), QUARTERS, QUARTERS)


def test_a_market_without_an_event_has_no_labels_of_events_and_stops_no_other_family():
    labels = event_labels(sources(900.0 * np.arange(300)), PARAMS)
    assert (len(labels["known"]), labels["rows"].shape[0]) == (0, 0)
    assert without_broken_rows(labels, "events", sources(900.0 * np.arange(300)))[1] == 0


def test_rows_whose_windows_have_missing_bars_are_left_out_of_training():
    opens = np.delete(900.0 * np.arange(3000), 2000)
    here = sources(opens)
    labels = {"columns": np.array(["a"] * 5), "known": here.closes[1000:2900:5], "y": np.arange(380.0)}
    kept, left_out = without_broken_rows(labels, "returns", here)
    assert left_out == len(labels["known"]) - len(kept["known"]) == len(labels["y"]) - len(kept["y"]) > 20
    gone = np.setdiff1d(labels["known"], kept["known"])
    assert here.closes[2000] <= gone.min() < gone.max() <= here.closes[2000 + 150]
    assert kept["columns"] is labels["columns"]
    assert {READ_BY.get(name, name) for name in LABELS} == set(FAMILIES)
