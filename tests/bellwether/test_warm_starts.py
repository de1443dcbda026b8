"""A warm start that this release refuses is folded again from the workspace, before the services start."""

import contextlib
import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bellwether.operations import warm_starts
from benchmarks.fixture import arm_of, simulated
from benchmarks.ports import free_ports
from pipelines.data import schemas
from pipelines.data.timeframes import Grid
from pipelines.settings import Settings, load_params
from pipelines.stage_outputs import features_of, labels_of
from pipelines.store import Store
from pipelines.training import stages
from pipelines.versioning import data_hash as data_hash_of
from pipelines.warm_start import _seal, publish_warm_start, read_warm_start
from serving.inference.generation import read_generation, write_generation

MINUTES = Grid("1m")

FAMILIES = {"validator": {"champion": arm_of("a" * 64), "challenger": None}}
DAYS, SYMBOL = 30, "SIM/USDT"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace after the features and labels stages, as a turn leaves it."""
    workspace, params = tmp_path_factory.mktemp("made"), load_params()
    (workspace / "data").mkdir()
    file = workspace / "data" / "1m.parquet"
    schemas.write_bars(schemas.to_frame(simulated(params, DAYS), MINUTES, None), file)
    described = {"symbol": params.simulator.symbol, "timeframe": "1m", "file": file.name, "first": "", "last": ""}
    (workspace / "data" / "manifest.json").write_text(json.dumps(described))
    content = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    (workspace / "data.dvc").write_text(json.dumps({"outs": [{"md5": content}]}))
    with contextlib.chdir(workspace):
        stages.build_features(params)
        stages.build_labels(params)
    return workspace


@pytest.fixture
def home(made, tmp_path):
    """An installation that serves that data, with its workspace."""
    (port,) = free_ports(1)
    settings = Settings(home=tmp_path / "home", store_url="", decision_port=port)
    shutil.copytree(made, settings.workspace)
    into = settings.serving_dir / "warm"
    into.mkdir(parents=True)
    warm = publish_warm_start(features_of(made / "artifacts", SYMBOL) / "warm", into, data_hash="0" * 32, hits=3, n=7)
    write_generation(settings.serving_dir, FAMILIES, {SYMBOL: warm}, datetime.now(UTC))
    Store.open(settings.store).close()
    return settings


def of_another_release(settings):
    """The published warm start as a release with another feature would have written it."""
    published = read_generation(settings.serving_dir)["warm_starts"][SYMBOL]
    folder = Path(published["path"])
    state = folder / "features.state"
    state.write_bytes(b"f" * 64 + state.read_bytes()[64:])
    published["digest"] = _seal(folder, json.loads((folder / "meta.json").read_text()))
    write_generation(settings.serving_dir, FAMILIES, {SYMBOL: published}, datetime.now(UTC))


def of_070(settings):
    """The published warm start as 0.7.0 would have written it: without the venue, which decides its costs."""
    published = read_generation(settings.serving_dir)["warm_starts"][SYMBOL]
    folder = Path(published["path"])
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("venue", "market"):
        del meta[name]
    published["digest"] = _seal(folder, meta)
    write_generation(settings.serving_dir, FAMILIES, {SYMBOL: published}, datetime.now(UTC))


def before_start(settings):
    lines = []
    warm_starts.before_start(settings, lines.append)
    return lines, read_generation(settings.serving_dir)


def test_a_warm_start_of_another_catalogue_is_folded_again_and_models_stay(home, made):
    of_another_release(home)
    before = read_generation(home.serving_dir)["generation"]
    lines, now = before_start(home)
    assert "SIM/USDT: StateError: features state of catalogue" in lines[0]
    assert lines[1:] == [f"warm start folded again: generation {before + 1}"]
    assert (now["generation"], now["families"]) == (before + 1, FAMILIES)
    again = read_warm_start(Path(now["warm_starts"][SYMBOL]["path"]), now["warm_starts"][SYMBOL]["digest"])
    first = read_warm_start(features_of(made / "artifacts", SYMBOL) / "warm")
    assert again.feature_state.tobytes() == first.feature_state.tobytes()
    assert again.signal_state.tobytes() == first.signal_state.tobytes()
    assert again.history.bars.tobytes() == first.history.bars.tobytes()
    assert again.data_hash == data_hash_of(made)
    assert again.traditional is not None
    assert sorted(home.home.iterdir()) == [
        home.home / name for name in ("chain_key", "serving", "store.db", "workspace")
    ]
    assert before_start(home) == ([], now)


def test_a_warm_start_without_a_venue_is_folded_again_and_pays_the_row_of_its_market(home):
    manifest = home.workspace / "data" / "manifest.json"
    described = json.loads(manifest.read_text()) | {"source": {"source": "files", "venue": "binance", "market": "spot"}}
    manifest.write_text(json.dumps(described))
    of_070(home)
    lines, now = before_start(home)
    assert "before release 0.8.0, without market, venue" in lines[0]
    assert lines[-1].startswith("warm start folded again"), lines
    again = read_warm_start(Path(now["warm_starts"][SYMBOL]["path"]), now["warm_starts"][SYMBOL]["digest"])
    assert (again.venue, again.market) == ("binance", "spot")
    assert before_start(home) == ([], now)


def test_a_damaged_warm_start_is_rebuilt_under_its_own_name(home, made):
    data_hash, counts = (
        data_hash_of(made),
        json.loads((labels_of(made / "artifacts", SYMBOL) / "traditional.json").read_text()),
    )
    stage, into = features_of(made / "artifacts", SYMBOL) / "warm", home.serving_dir / "warm"
    assert 0.0 < counts["effective"] < counts["n"]  # events of the consensus overlap
    published = publish_warm_start(stage, into, data_hash=data_hash, **counts)
    write_generation(home.serving_dir, FAMILIES, {SYMBOL: published}, datetime.now(UTC))
    damaged = Path(published["path"]) / "closes.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    lines, now = before_start(home)
    assert "DigestMismatch" in lines[0]
    assert lines[-1].startswith("warm start folded again"), lines
    assert now["warm_starts"][SYMBOL] == published
    read_warm_start(Path(published["path"]), published["digest"])


@pytest.mark.parametrize("broken", ["gone", "another layout"])
def test_a_warm_start_that_is_gone_or_of_another_layout_is_refused_with_the_reason(home, broken):
    published = read_generation(home.serving_dir)["warm_starts"][SYMBOL]
    folder = Path(published["path"])
    if broken == "gone":
        shutil.rmtree(folder)
    else:
        meta = json.loads((folder / "meta.json").read_text())
        del meta["last_open_time"]
        published["digest"] = _seal(folder, meta)
        write_generation(home.serving_dir, FAMILIES, {SYMBOL: published}, datetime.now(UTC))
    (home.workspace / "data.dvc").unlink()  # nothing to fold: only the refusal matters here
    lines, _ = before_start(home)
    assert lines[0].startswith("the published warm start is refused (")


@pytest.mark.parametrize("lost", ["data.dvc", "data/manifest.json", "artifacts/labels/SIM-USDT/traditional.json"])
def test_without_the_workspace_it_names_the_command_that_makes_one_and_changes_nothing(home, lost):
    of_another_release(home)
    before = read_generation(home.serving_dir)
    (home.workspace / lost).unlink()
    lines, now = before_start(home)
    assert lost in lines[-1]
    assert "`bellwether run --once`" in lines[-1]
    assert now == before


def test_data_that_cannot_be_folded_is_reported_in_one_line(home):
    of_another_release(home)
    (home.workspace / "data" / "1m.parquet").write_bytes(b"no parquet")
    lines, _ = before_start(home)
    assert "cannot be folded again" in lines[-1]
    assert "Traceback" not in lines[-1]
    assert "\n" not in lines[-1]


def test_nothing_is_done_if_nothing_was_published(tmp_path):
    warm_starts.before_start(Settings(home=tmp_path / "new", store_url=""))
    assert not (tmp_path / "new").exists()
