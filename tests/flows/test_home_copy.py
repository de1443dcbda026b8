"""What a worker brings of a home whose disk it does not share."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from flows.support import clock_check, home_copy
from flows.support.installation import Installation
from pipelines.errors import StateError
from pipelines.settings import Settings, load_params
from pipelines.store import Store

T0 = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def home(tmp_path):
    """An installation of profile `cluster` that serves; its ledger is SQLite here."""
    where = Settings(home=tmp_path / "home", profile="cluster", store_url=f"sqlite:///{tmp_path}/l.db", _env_file=None)
    where.home.mkdir()
    with_store = Installation(where, load_params(), Store.open(where.store))
    yield with_store
    with_store.store.close()


@pytest.fixture
def worker(home, tmp_path):
    """A worker of it, on another disk."""
    where = home.settings.model_copy(update={"home": tmp_path / "elsewhere", "worker": "worker-1"})
    return replace(home, settings=where)


def version(installation, name, at, text="outs:\n- md5: x\n"):
    """Keep a data version in a home, as old as `at`."""
    folder = installation.versions / name
    folder.mkdir(parents=True)
    for file in ("data.dvc", "dvc.lock", "params.yaml"):
        (folder / file).write_text(text)
        os.utime(folder / file, (at.timestamp(), at.timestamp()))


def test_a_worker_has_every_pointer_in_the_order_they_were_kept_and_the_newest_is_the_one_kept_last(home, worker):
    version(home, "b", T0)
    version(home, "a", T0 + timedelta(hours=1))
    home_copy.exchange(home, home_copy.Exchanged())
    home_copy.bring_pointers(worker)
    assert home_copy.newest_version(home.store.home_files()) == "a"
    for name in ("a", "b"):
        for file in ("data.dvc", "dvc.lock", "params.yaml"):
            ours = worker.versions / name / file
            assert ours.read_text() == (home.versions / name / file).read_text()
    assert (worker.versions / "b" / "data.dvc").stat().st_mtime == pytest.approx(T0.timestamp())
    assert home_copy.versioning.kept_versions(worker.versions) == ["b", "a"]


def test_what_a_worker_made_reaches_the_home_and_what_retention_removed_leaves_the_worker(home, worker):
    version(home, "old", T0)
    last = home_copy.Exchanged()
    home_copy.exchange(home, last)
    home_copy.bring_pointers(worker)
    worker.store.put_home_files({f"versions/new/{name}": "outs: 1\n" for name in ("data.dvc", "dvc.lock")}, T0)
    home_copy.exchange(home, last)
    assert (home.versions / "new" / "data.dvc").read_text() == "outs: 1\n"
    home_copy.forget_versions(home, ["old"])
    home_copy.bring_pointers(worker)
    assert not (worker.versions / "old").exists()
    assert (home.versions / "old").exists(), "a home removes its own versions itself"


def test_what_people_chose_goes_from_the_home_to_the_worker_and_never_back(home, worker, monkeypatch):
    last = home_copy.Exchanged()
    for path in home_copy.CHOSEN:
        (home.settings.home / path).parent.mkdir(parents=True, exist_ok=True)
        (home.settings.home / path).write_text(f'{{"of": "{path}"}}')
    home_copy.exchange(home, last)
    monkeypatch.setattr(home_copy.checked_out, "checked_out", lambda settings: None)
    home_copy.bring(worker)
    for path in home_copy.CHOSEN:
        assert (worker.settings.home / path).read_text() == f'{{"of": "{path}"}}'
        (worker.settings.home / path).write_text("changed here")
    gone = home_copy.CHOSEN[1]
    (home.settings.home / gone).unlink()
    home_copy.exchange(home, last)
    home_copy.bring(worker)
    assert not (worker.settings.home / gone).exists()
    assert (worker.settings.home / home_copy.CHOSEN[0]).read_text() == f'{{"of": "{home_copy.CHOSEN[0]}"}}'
    assert not (home.settings.home / gone).exists()


def test_without_a_pool_nothing_is_given_or_brought(home):
    alone = replace(home, settings=home.settings.model_copy(update={"profile": "machine"}))
    version(alone, "a", T0)
    home_copy.exchange(alone, home_copy.Exchanged())
    home_copy.bring(alone)
    assert alone.store.home_files() == []


@pytest.mark.parametrize(("off_s", "word"), [(600, "ahead of"), (-600, "behind")])
def test_a_clock_that_is_off_stops_the_run_with_one_alarm_that_the_next_right_one_clears(
    worker, monkeypatch, off_s, word
):
    right = clock_check.now
    for _ in range(2):
        monkeypatch.setattr(clock_check, "now", lambda: right() + timedelta(seconds=off_s))
        with pytest.raises(StateError, match=f"worker-1.*600 s {word} the database's"):
            clock_check.require_clock(worker)
    assert [alarm.kind for alarm in worker.store.alarms()] == [clock_check.CLOCK_OFF]
    monkeypatch.setattr(clock_check, "now", lambda: right() + timedelta(seconds=2))
    clock_check.require_clock(worker)
    assert worker.store.alarms() == []


def test_a_slow_database_is_no_wrong_clock(worker, monkeypatch):
    moments = iter([T0, T0 + timedelta(seconds=60)])
    monkeypatch.setattr(clock_check, "now", lambda: next(moments))
    store = SimpleNamespace(database_time=lambda: T0 + timedelta(seconds=30), alarms=list)
    clock_check.require_clock(replace(worker, store=store))
