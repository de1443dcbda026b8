"""Who runs a stage: this machine with the command of dvc.yaml, or, where Dask computes its parts, the same with another
module."""

from types import SimpleNamespace

import pytest

from bellwether.operations.launch import dask_node
from flows.support import dask_workers, stage_command, stores
from pipelines import versioning
from pipelines.errors import ServiceDown
from pipelines.settings import Settings


@pytest.fixture
def called(monkeypatch):
    """The calls of versioning, in order; `labels` alone is stale."""
    made = []
    monkeypatch.setattr(versioning, "stale", lambda workspace, names: [name for name in names if name == "labels"])
    monkeypatch.setattr(versioning, "reproduce", lambda workspace, names: made.append(("reproduce", *names)) or names)
    monkeypatch.setattr(versioning, "record", lambda workspace, names: made.append(("record", *names)))
    monkeypatch.setattr(
        versioning, "run_stage", lambda workspace, name, timeout_s, show, instead: made.append((name, dict(instead)))
    )
    return made


def installation(tmp_path, **changes):
    settings = Settings(_env_file=None, home=tmp_path / "home", **changes)
    return SimpleNamespace(settings=settings, workspace=settings.workspace)


def test_without_dask_the_build_graph_runs_as_it_is_written(called, tmp_path):
    here = installation(tmp_path)
    assert stage_command.reproduce(here, ["features", "labels"], 1.0, print) == ["features", "labels"]
    stage_command.run_stage(here, "train@validator", 1.0, print)
    assert called == [("reproduce", "features", "labels"), ("train@validator", {})]


def test_with_dask_stages_of_several_parts_run_through_it_and_are_recorded(called, tmp_path):
    spread = installation(tmp_path, dask_url="tls://10.0.0.5:8786")
    assert stage_command.reproduce(spread, ["features", "labels"], 1.0, print) == ["labels"]
    for name in ("train@validator", "evaluate@validator"):
        stage_command.run_stage(spread, name, 1.0, print)
    instead = {"pipelines.training.stages": "flows.stage"}
    assert called == [("labels", instead), ("record", "labels"), ("train@validator", instead),
                      ("evaluate@validator", {})]  # fmt: skip


def test_the_command_of_a_stage_names_the_module_that_is_replaced():
    from pipelines.settings import ROOT, read_yaml

    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    for name in stage_command.SPREAD:
        assert stage_command.HERE in stages[name].get("do", stages[name])["cmd"].split()


def test_only_the_homes_certificate_opens_a_connection_and_nothing_listens_for_pages(tmp_path):
    where = Settings(_env_file=None, home=tmp_path / "home", profile="cluster", dask_port=9999)
    assert not stores.shakes_hands(where, 9, 0.1)
    stores.write_credentials(where)
    certificate, key = map(str, stores.dask_files(where))
    for role, number in (("scheduler", ""), ("worker", "1"), ("worker", "7")):
        words = dask_node.words(where, role, number, tmp_path)
        assert {f"--tls-cert={certificate}", f"--tls-key={key}", "--protocol=tls", "--no-dashboard"} <= set(words)
        assert not [word for word in words if word.startswith("tcp")]
    assert "tls://127.0.0.1:9999" in words
    assert "--worker-port=0" in words
    with pytest.raises(SystemExit, match="worker NUMBER"):
        dask_node.words(where, "nanny", "", tmp_path)


def test_a_scheduler_that_is_not_there_is_an_error_after_a_wait_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_workers, "WAIT_S", 0.0)
    where = Settings(_env_file=None, home=tmp_path / "home", dask_url="tls://127.0.0.1:9")
    with pytest.raises(ServiceDown, match=r"no Dask scheduler at tls://127.0.0.1:9.*BELLWETHER_DASK_URL=local"):
        dask_workers.await_scheduler(where)
