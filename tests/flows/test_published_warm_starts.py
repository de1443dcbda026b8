"""Every market of the newest snapshot has its own published warm start, also in a workspace of an earlier release."""

import json
import shutil

import pytest

from benchmarks.fixture import MINUTES, simulated, universe
from flows.support.installation import Installation
from flows.support.promotion import install_warm_starts
from pipelines.settings import Settings, load_params
from pipelines.stage_outputs import features_of, labels_of, read_meta
from pipelines.store import Store
from pipelines.warm_start import read_warm_start

PARAMS, SYMBOLS = load_params(), ("AAA/USDT", "BBB/USDT")


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """An installation whose workspace has the features and labels of two markets of six days."""
    from pipelines.training import stages

    made = Installation(Settings(home=tmp_path, store_url=""), PARAMS, Store.open(f"sqlite:///{tmp_path}/store.db"))
    bars = simulated(PARAMS, 6)
    universe(made.workspace, dict.fromkeys(SYMBOLS, (bars, MINUTES)), {})
    monkeypatch.chdir(made.workspace)
    stages.build_features(PARAMS)
    stages.build_labels(PARAMS)
    yield made
    made.store.close()


def test_each_market_has_an_entry_of_its_own(installation):
    found = install_warm_starts(installation)
    assert tuple(found) == SYMBOLS
    for symbol, entry in found.items():
        assert entry["data_hash"] == installation.meta()["data_hash"]
        warm = read_warm_start(installation.settings.serving_dir / "warm" / entry["digest"], entry["digest"])
        assert warm.symbol == symbol


def test_a_workspace_of_release_0_10_is_published_as_its_one_market(installation):
    """It had one market, in the folders of the stages themselves."""
    artifacts = installation.workspace / "artifacts"
    old = read_meta(artifacts)["markets"][SYMBOLS[0]] | {"symbol": SYMBOLS[0], "data_hash": "d" * 32}
    for folder in (features_of(artifacts, SYMBOLS[0]), labels_of(artifacts, SYMBOLS[0])):
        for path in folder.iterdir():
            path.rename(folder.parent / path.name)
        shutil.rmtree(folder)
    (artifacts / "features" / "meta.json").write_text(json.dumps(old))
    found = install_warm_starts(installation)
    assert tuple(found) == SYMBOLS[:1]
    assert found[SYMBOLS[0]]["data_hash"] == "d" * 32
