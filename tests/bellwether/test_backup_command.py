"""`bellwether backup` and `restore`: from one home into another, by the commands a person types."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from support.command_line import bellwether
from support.legacy_store import release_010

from bellwether.operations import backup
from pipelines.errors import LeaseHeld, StateError, UnreadableFile, WouldOverwrite
from pipelines.settings import ROOT, Settings
from pipelines.store import Store
from serving.inference.generation import read_generation, write_generation

T0 = datetime(2024, 1, 1, tzinfo=UTC)
DIGEST = "ab" * 32


@pytest.fixture
def old(tmp_path):
    """A home with a store, a generation file with its warm start, and one stored data version."""
    settings = Settings(home=tmp_path / "old")
    release_010(f"sqlite:///{settings.home / 'store.db'}")
    Store.open(settings.store).close()
    warm, version = settings.serving_dir / "warm" / DIGEST, settings.home / "versions" / "0fc2.dir"
    for folder in (warm, version):
        folder.mkdir(parents=True)
    (warm / "bar.npy").write_bytes(bytes(range(256)))
    (version / "data.dvc").write_text("outs: []\n")
    named = {"data_hash": "h", "digest": DIGEST, "path": str(warm)}
    write_generation(settings.serving_dir, {}, {"SIM/USDT": named}, T0)
    return settings


@pytest.fixture
def new(tmp_path):
    return Settings(home=tmp_path / "new")


def run_json(home, *words):
    done = bellwether(home, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_home_is_restored_under_another_path_with_its_serving_state(old, new, tmp_path):
    made = run_json(old.home, "backup")
    assert made["file"].startswith(str(old.home / "backups"))
    assert made["rows"]["decisions"] == 2
    shutil.move(made["file"], tmp_path / "moved.zip")
    shutil.rmtree(old.home)
    found = run_json(new.home, "restore", str(tmp_path / "moved.zip"))
    assert found["rows"] == made["rows"]
    generation = read_generation(new.serving_dir)
    assert generation["warm_starts"]["SIM/USDT"]["path"] == str(new.serving_dir / "warm" / DIGEST)
    assert (new.serving_dir / "warm" / DIGEST / "bar.npy").read_bytes() == bytes(range(256))
    assert (new.home / "versions" / "0fc2.dir" / "data.dvc").read_text() == "outs: []\n"
    assert run_json(new.home, "status")["tier"] == 3


def test_a_dry_run_counts_and_checks_and_writes_nothing(old, new, tmp_path):
    file = tmp_path / "b.zip"
    assert backup.preview(old, file)["outcomes"] == 1
    assert not file.exists()
    backup.make(old, file, T0)
    assert run_json(new.home, "restore", str(file), "--dry-run")["restored"] is False
    assert not (new.home / "store.db").exists()


def test_refusals_are_one_line_and_exit_code_1(old, new, tmp_path):
    file = tmp_path / "b.zip"
    backup.make(old, file, T0)
    before = file.read_bytes()
    for words, expected in [
        (["backup", "--to", str(file)], "WouldOverwrite: "),
        (["restore", str(file)], "WouldOverwrite: the store is not empty"),
    ]:
        done = bellwether(old.home, *words)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
        assert done.stderr.startswith(expected)
    assert file.read_bytes() == before


def test_a_dry_run_refuses_what_the_real_one_refuses(old, new, tmp_path):
    file = tmp_path / "b.zip"
    backup.make(old, file, T0)
    with pytest.raises(WouldOverwrite, match=r"b\.zip is there"):
        backup.preview(old, file)
    with pytest.raises(StateError, match="no store"):
        backup.preview(new, tmp_path / "c.zip")
    with pytest.raises(WouldOverwrite, match="not empty"):
        backup.verify(old, file)
    with pytest.raises(UnreadableFile, match="no such file"):
        backup.verify(new, tmp_path / "none.zip")
    with pytest.raises(UnreadableFile, match="is no backup"):
        backup.verify(new, ROOT / "README.md")
    assert not new.home.exists()


def test_nothing_is_restored_while_a_service_of_this_home_runs(old, new, tmp_path):
    backup.make(old, tmp_path / "b.zip", T0)
    marks = {"BELLWETHER_HOME": str(new.home), "BELLWETHER_RUN": "test"}
    service = subprocess.Popen([sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"],
                               env={**os.environ, **marks}, stdout=subprocess.PIPE)  # fmt: skip
    try:
        service.stdout.readline()
        with pytest.raises(LeaseHeld, match=rf"processes {service.pid}.*bellwether down"):
            backup.restore_installation(new, tmp_path / "b.zip")
        assert not (new.home / "store.db").exists()
    finally:
        service.kill()
        service.communicate()
    backup.restore_installation(new, tmp_path / "b.zip")
    assert len(Store.open(new.store).decisions()) == 2


def test_a_file_that_differs_is_moved_aside_and_an_identical_one_stays(old, new, tmp_path):
    backup.make(old, tmp_path / "b.zip", T0)
    write_generation(new.serving_dir, {}, {}, T0)
    write_generation(new.serving_dir, {}, {}, T0)
    same = new.serving_dir / "warm" / DIGEST / "bar.npy"
    same.parent.mkdir(parents=True)
    same.write_bytes(bytes(range(256)))
    _, placed = backup.restore_installation(new, tmp_path / "b.zip")
    assert read_generation(new.serving_dir)["generation"] == 1
    moved = {p.path.name: p.moved_to for p in placed}
    assert moved == {"generation.json": new.serving_dir / "generation.json.before-restore", "data.dvc": None}
    assert json.loads(moved["generation.json"].read_text())["generation"] == 2


def test_a_damaged_generation_file_does_not_stop_a_backup(old, tmp_path):
    (old.serving_dir / "generation.json").write_text("{")
    assert set(backup.make(old, tmp_path / "b.zip", T0).files) == {"versions/0fc2.dir/data.dvc"}


def test_a_store_moves_from_sqlite_to_postgresql_by_backup_and_restore(old, tmp_path, postgres_url):
    backup.make(old, tmp_path / "b.zip", T0)
    moved = Settings(home=tmp_path / "moved", store_url=postgres_url)
    backup.restore_installation(moved, tmp_path / "b.zip")
    assert Store.open(postgres_url).decisions() == Store.open(old.store).decisions()
