"""The name of a flow run, and how its progress artifact moves."""

import json

import prefect.artifacts
import prefect.runtime
import pytest

from flows.support import progress
from flows.support.installation import Installation
from flows.support.progress import RunProgress, line_progress, run_progress, step
from flows.support.run_names import on_data, with_versions, words
from pipelines.settings import Settings, load_params

MARKETS = {
    "SIM/USDT": {"timeframe": "1m", "last": "2024-12-29T23:59:00+00:00"},
    "SIMB/USDT": {"timeframe": "1m", "last": "2024-12-30T23:59:00+00:00"},
}


@pytest.fixture
def installation(tmp_path):
    return Installation(Settings(home=tmp_path, store_url=""), load_params(), None)


def test_a_run_is_named_with_the_market_day_and_the_hash_of_its_data(installation):
    assert on_data("train validator", installation) == "train validator"  # before the first data version
    installation.data.mkdir(parents=True)
    (installation.data / "manifest.json").write_text(json.dumps({"markets": MARKETS}))
    pointer = installation.workspace / "data.dvc"
    pointer.write_text("outs:\n- md5: aae8135bd00f.dir\n  path: data\n")
    assert on_data("train validator", installation) == "train validator · 2024-12-30 · aae8135b"
    pointer.write_text("outs: [")  # the flow itself says that it is damaged
    assert on_data("train validator", installation) == "train validator"


def test_versions_and_parameters_stand_in_a_name_as_words():
    assert with_versions("train", {"validator": "3", "regime": "2"}) == "train validator 3, regime 2"
    assert with_versions("train", {}) == "train"
    assert [words(value) for value in (None, ["validator", "regime"], "SIM/USDT", 3)] == [
        "", "validator, regime", "SIM/USDT", "3",
    ]  # fmt: skip


@pytest.fixture
def shown(monkeypatch):
    """What Prefect was sent: (key or id, percent)."""
    calls = []

    def create(percent, key, description):
        calls.append((key, percent))
        return key

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(
        prefect.artifacts, "update_progress_artifact", lambda made, percent, description: calls.append((made, percent))
    )
    monkeypatch.setattr(prefect.runtime.flow_run, "id", "a run", raising=False)
    return calls


def test_a_progress_artifact_moves_with_its_parts_and_ends_at_the_whole(shown):
    with run_progress("train", ["rows", "validator", "regime", "register"]):
        with step("features and labels", part="rows"):
            pass
        with line_progress("train: validator", part="validator") as show_line:
            for line in ("[0/2] rows to train on", "[1/2] final fit", "no position in this one"):
                show_line(line)
    percents = [percent for key, percent in shown if key == "progress-train"]
    assert percents == [0, 25, 37, 50, 100]  # regime was left out: with the end it is over too


def test_a_flow_inside_another_moves_its_part_there_and_never_backwards(shown):
    with run_progress("retrain", ["ingest", "train"]):
        for _ in range(2):
            with run_progress("ingest", ["fetch", "version"]), step("fetch", part="fetch"):
                pass
    assert [percent for key, percent in shown if key == "progress-retrain"] == [0, 25, 50, 100]


def test_what_fails_leaves_its_progress_where_it_was(shown):
    def fail():
        with run_progress("train", ["rows", "fit"]):
            with step("rows", part="rows"):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert shown[-1] == ("progress-train", 50)


def test_outside_of_a_flow_run_and_where_prefect_refuses_nothing_is_lost(monkeypatch, progress_lines):
    with run_progress("train", ["rows"]), step("rows", part="rows"):
        pass

    def refuse(*_, **__):
        raise prefect.exceptions.PrefectException("busy")

    monkeypatch.setattr(prefect.artifacts, "create_progress_artifact", refuse)
    run = RunProgress("train", ["rows"], None)
    run.set("rows", 1.0)
    assert (run.percent, run.artifact) == (100, None)
    assert "progress of 100 % is not shown in Prefect: busy" in progress_lines()
    assert progress._RUN.get() is None
