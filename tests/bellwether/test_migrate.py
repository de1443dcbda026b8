"""`bellwether migrate`: what it refuses and what it shows, without the stores of profile `cluster`."""

import json
import os
import subprocess
import sys

import pytest
from support.command_line import bellwether
from support.legacy_store import release_010

from bellwether.operations import migrate
from bellwether.operations.migrate_files import Folder
from pipelines.errors import LeaseHeld, WouldOverwrite
from pipelines.settings import Settings
from pipelines.store import Store


@pytest.fixture
def home(tmp_path):
    """A home with a ledger and two files of data versions."""
    settings = Settings(home=tmp_path / "home")
    release_010(settings.store)
    Store.open(settings.store).close()
    for name in ("files/md5/ab/cd", "files/md5/ef/gh"):
        file = settings.home / "dvc-remote" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(name.encode())
    return settings


def test_a_dry_run_shows_sizes_and_makes_nothing(home):
    before = sorted(home.home.rglob("*"))
    done = bellwether(home.home, "migrate", "--to", "cluster", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    found = {part["part"]: part for part in json.loads(done.stdout)["parts"]}
    assert found["ledger"]["holds"]["decisions"] == 2
    assert found["ledger"]["to"].startswith("postgresql://bellwether@")
    assert found["data versions"]["holds"] == {"files": 2, "bytes": 30}
    assert found["mlflow"]["holds"] == {}
    assert sorted(home.home.rglob("*")) == before
    shown = bellwether(home.home, "migrate", "--to", "cluster", "--dry-run")
    assert "Nothing was started or moved." in shown.stdout


def test_the_way_back_is_not_counted_while_the_stores_are_down(home):
    done = bellwether(home.home, "migrate", "--to", "machine", "--dry-run", "--json", BELLWETHER_POSTGRES_PORT="9")
    parts = json.loads(done.stdout)["parts"]
    assert {part["holds"] for part in parts} == {None}


def test_a_running_service_is_named_and_nothing_moves(home):
    marks = {"BELLWETHER_HOME": str(home.home), "BELLWETHER_RUN": "test", "BELLWETHER_SERVICE": "feed"}
    service = subprocess.Popen([sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"],
                               env={**os.environ, **marks}, stdout=subprocess.PIPE)  # fmt: skip
    try:
        service.stdout.readline()
        with pytest.raises(LeaseHeld, match=r"^feed of .* `bellwether down`, then repeat"):
            migrate.migrate(home, "cluster", print)
        assert migrate.plan(home, "cluster")["running"] == ["feed"]
    finally:
        service.kill()
        service.communicate()


def test_a_url_counts_for_the_profile_whose_kind_of_store_it_names():
    settings = Settings(
        store_url="postgresql://desk/ledger", mlflow_store_url="sqlite:////old/mlflow.db", remote_url="ssh://host/dvc"
    )
    machine, cluster = migrate.side(settings, "machine"), migrate.side(settings, "cluster")
    assert (machine.store_url, cluster.store_url) == ("", "postgresql://desk/ledger")
    assert (machine.mlflow_store_url, cluster.mlflow_store_url) == ("sqlite:////old/mlflow.db", "")
    assert machine.remote_url == cluster.remote_url == "ssh://host/dvc"
    assert "data versions" not in [part.name for part in migrate.parts_of(machine, cluster)]
    assert "remove BELLWETHER_MLFLOW_STORE_URL, which names the old place" in migrate.next_step(settings, "cluster")


def test_files_of_a_folder_are_listed_without_those_that_are_not_complete(home):
    (home.home / "dvc-remote" / "half.migrating").touch()
    folder = Folder(str(home.home / "dvc-remote"))
    assert folder.sizes() == {"files/md5/ab/cd": 15, "files/md5/ef/gh": 15}


def on_postgresql(home, url):
    """Settings under which everything that this home holds, but its files, moves to a PostgreSQL that runs."""
    elsewhere = {"remote_url": "ssh://nowhere/dvc", "mlflow_artifacts_url": "gs://nowhere/artifacts"}
    urls = {"store_url": url, "mlflow_store_url": url, "prefect_store_url": url}
    return Settings(home=home.home, **urls, **elsewhere)


def test_a_ledger_moves_to_a_database_that_a_url_names_and_a_repeat_changes_nothing(home, postgres_url):
    settings = on_postgresql(home, postgres_url)
    lines = []
    record = migrate.migrate(settings, "cluster", lines.append)
    assert record["parts"]["ledger"]["rows"]["decisions"] == 2
    assert record["parts"]["ledger"]["chain_lines"] > 0
    assert Store.open(postgres_url).decisions() == Store.open(home.store).decisions()
    assert json.loads(migrate.record_file(settings, "cluster").read_text()) == record
    again = migrate.migrate(settings, "cluster", lines.append)
    assert again["parts"]["ledger"]["rows"] == record["parts"]["ledger"]["rows"]
    assert "ledger: there already" in lines


def test_a_target_with_other_data_is_refused(home, postgres_url):
    release_010(postgres_url)
    Store.open(postgres_url).close()
    with pytest.raises(WouldOverwrite, match=r"holds other data than the ledger .* Nothing was moved"):
        migrate.migrate(on_postgresql(home, postgres_url), "cluster", print)
