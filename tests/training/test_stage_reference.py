"""The stage that trains puts the reference of its own history into the bundle, so a later snapshot cannot change it."""

import contextlib

import numpy as np
import yaml
from support.stage_folders import SYMBOL, stage_folders

from pipelines.contracts import BAR_WIDTH, OPEN_TIME
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import read_reference
from pipelines.settings import ROOT, read_yaml
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.training import stages

EVENTS, BARS_AN_EVENT, BLOCK = 1_000, 12, 300
ROWS = EVENTS * BARS_AN_EVENT + 3 * BLOCK  # the snapshot goes on after the newest label


def test_the_bundle_of_a_fit_has_the_drift_reference_of_its_training_history(tmp_path):
    tree, rng, ones = read_yaml(ROOT / "params.yaml"), np.random.default_rng(8), np.ones(EVENTS)
    tree["validator"] |= {"trees": 5, "depth": 2, "decay_half_lives_events": [500]}
    tree["splits"] |= {"folds": 2, "calibration_stretches": 2}
    tree["drift"] |= {"block_bars": BLOCK}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    features, labels = stage_folders(
        tmp_path / "artifacts", data_hash="d", catalogue_hash="c", venue="simulator", market="spot", has_funding=False,
        base_timeframe="1m",
    )  # fmt: skip
    rows, known = rng.normal(size=(EVENTS, len(VALIDATOR_COLUMNS))), 900.0 * BARS_AN_EVENT * np.arange(EVENTS)
    arrays = {
        "rows": rows, "y": (rng.random(EVENTS) < 1 / (1 + np.exp(-rows[:, 0]))).astype(float), "uniqueness": ones,
        "known": known, "ended": known + 900.0, "gross_bps": 10 * ones, "direction": ones, "atr": 0.01 * ones,
        "regime": 0 * ones, "volatility": rng.normal(size=(EVENTS, 2)), "cost_bps": 5 * ones,
        "target_cost_bps": 5 * ones, "spread_known": 0 * ones,
    }  # fmt: skip
    np.savez(labels / "events.npz", columns=np.array(VALIDATOR_COLUMNS), **arrays)
    bars = np.zeros((ROWS, BAR_WIDTH))
    bars[:, OPEN_TIME] = 900.0 * np.arange(ROWS)
    np.save(features / "decision.npy", bars)
    np.save(features / "features.npy", rng.normal(size=(ROWS, len(FEATURES.columns))))
    with contextlib.chdir(tmp_path):
        stages.main(["train", "validator"])
    reference = read_reference(tmp_path / "artifacts/validator/bundle", SYMBOL)
    last = known[-1] + 900.0
    assert reference.columns == WATCHED_COLUMNS
    assert reference.n == int(last // 900.0) // BLOCK * BLOCK  # whole blocks up to the end of the newest label
