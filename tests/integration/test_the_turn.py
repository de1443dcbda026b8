"""One turn of the loop on the simulator: what it leaves in each of the four tools, and that they agree."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from support.stack import quiet

from flows.support import processes
from pipelines.families import FAMILIES
from pipelines.models.runtime import load_bundle
from pipelines.settings import ROOT
from pipelines.versioning import data_hash
from serving.state.tiers import TierInputs, best_tier

pytestmark = pytest.mark.stack
LINEAGE = ("digest", "run_id", "data_hash", "git_commit")


@pytest.fixture(scope="module")
def status(stack):
    return stack.json("status")


@pytest.fixture(scope="module")
def first(stack):
    """The version that the gate passed and the policy promoted."""
    return stack.installation.tracking.version("validator", stack.store.promotions("validator")[1].to_version)


def test_status_names_the_champion_with_its_evidence_and_every_service_is_up(stack, status):
    champion = status["families"]["validator"]["champion"]
    assert champion["verdict"] == "passed"
    assert all(champion[name] for name in ("version", *LINEAGE))
    assert set(status["families"]) == {"validator", "pattern", "regime", "predictor"}
    assert {name: service["state"] for name, service in status["services"].items()} == dict.fromkeys(
        ("mlflow", "prefect", "decision", "flows", "feed", "models", "evidently"), "up"
    )
    champions = {family: "digest" for family, arms in status["families"].items() if arms["champion"]}
    assert status["tier"] == best_tier(TierInputs(None, champions))[0]
    assert status["data_hash"] == data_hash(stack.settings.workspace)


def test_every_family_has_a_version_a_verdict_and_figures_with_their_intervals(stack, status):
    for family in FAMILIES:
        judged = stack.store.promotions(family)[0]
        assert (judged.actor, judged.action) == ("gate", "challenge")
        assert judged.verdict_passed == (status["families"][family]["champion"] is not None)
        scored = status["figures"][family]
        gains = [row for row in scored["rows"] if row[0].startswith("gain over")]
        assert gains
        assert all("[" in interval for _, _, interval, _ in gains)
        assert stack.installation.tracking.version(family, judged.to_version).verdict in ("passed", "refused")


def test_prefect_shows_one_task_a_family_and_they_ran_side_by_side(stack):
    runs = stack.prefect("task_runs/filter", {"task_runs": {"name": {"any_": [f"fit-{name}" for name in FAMILIES]}}})
    first = {run["name"]: run for run in sorted(runs, key=lambda run: run["start_time"], reverse=True)}
    assert set(first) == {f"fit-{name}" for name in FAMILIES}
    spans = sorted((run["start_time"], run["end_time"]) for run in first.values())
    assert any(later[0] < earlier[1] for earlier, later in pairwise(spans))


def test_every_family_answers_at_every_close_or_gives_its_reason(stack):
    newest = stack.store.decisions(last=1)[0].decision
    assert set(newest.models) == set(FAMILIES)
    for arms in newest.models.values():
        for answer in arms.values():
            assert (answer.p is not None) if answer.status == "OK" else answer.reason
    assert newest.lineage["regime"]


def test_the_gate_was_the_only_way_to_the_champion_slot(stack):
    judged, promoted = stack.store.promotions("validator")[:2]
    assert (judged.actor, judged.action, judged.verdict_passed) == ("gate", "challenge", True)
    assert (promoted.actor, promoted.action, promoted.digest) == ("policy", "promote", judged.digest)
    assert promoted.evidence == {"verdict": judged.id}


def test_the_planted_drift_raised_an_alarm_and_its_event_a_retrain(stack, refused):
    assert "drift" in {alarm.kind for alarm in stack.store.alarms()}
    request = stack.store.retrain_requests("validator")[-1]
    assert (request.state, request.reason.split(":")[0]) == ("done", "drift")
    runs = stack.prefect("flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}, "sort": "START_TIME_ASC"})
    ours = [run for run in runs if run["parameters"].get("reason") == request.reason]
    assert len(ours) == 1
    assert ours[0]["state_type"] == "COMPLETED"
    assert ours[0]["deployment_id"]
    assert ours[0]["created_by"]["type"] == "AUTOMATION"
    assert set(ours[0]["parameters"]["families"]) == {  # the automation hands a list over
        each.family for each in stack.store.retrain_requests() if each.reason == request.reason
    }
    assert stack.installation.tracking.version("validator", refused).verdict == "refused"
    assert stack.installation.tracking.version("validator", refused).data_hash == stack.json("status")["data_hash"]


def test_the_drift_report_opens_in_evidently_and_lies_in_the_run_of_the_model_it_is_about(stack, first):
    url = f"{stack.settings.evidently_url}/api/projects"
    project = next(p for p in httpx.get(url, headers=stack.key).json() if p["name"].startswith("Bellwether: "))
    reports = httpx.get(f"{url}/{project['id']}/reports", headers=stack.key).json()
    assert {report["name"].split(" · ")[0] for report in reports} <= set(stack.installation.symbols)
    assert {report["name"].split(" · ")[2] for report in reports} == {"drift"}  # of the newest block, of twelve days
    opened = httpx.get(f"{url}/{project['id']}/{reports[-1]['id']}/data", headers=stack.key, timeout=30)
    assert opened.status_code == 200
    assert len(opened.json()["widgets"]) > 1
    pages = list(stack.settings.home.glob("reports/drift/validator-*/*/drift.html"))
    assert any(
        f"{stack.settings.evidently_url}/projects/{project['id']}/reports/" in each.read_text() for each in pages
    )
    from mlflow import MlflowClient

    days = {each.parent.name for each in pages if each.parent.parent.name == f"validator-{first.version}"}
    logged = MlflowClient(stack.settings.mlflow_url).list_artifacts(first.run_id, "drift/validator")
    assert {Path(each.path).name for each in logged} == days
    assert days


def test_dvc_finds_nothing_to_do_in_the_workspace_after_a_turn(stack, tmp_path):
    # in a copy: DVC's own command makes the files of the cache readable to all again, inside folders that are not
    for name in ("workspace", "dvc-cache"):
        shutil.copytree(stack.settings.home / name, tmp_path / name)
    config = tmp_path / "workspace" / ".dvc" / "config"
    config.write_text(config.read_text().replace(str(stack.settings.home / "dvc-cache"), str(tmp_path / "dvc-cache")))
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=tmp_path / "workspace", env=stack.env,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {}
    versions = stack.json("data", "list")["versions"]
    assert [one["in_workspace"] for one in versions] == [False] * (len(versions) - 1) + [True]
    assert stack.json("data", "diff", versions[0]["data_hash"])["facts"]["SIM/USDT"]["rows"]


def test_a_version_carries_everything_that_traces_it(stack, first):
    assert first.tags.keys() >= {
        "digest", "data_hash", "git_commit", "git_dirty", "catalogue_hash", "flow_run", "trials", "gate_verdict",
        "reselection", "reselect_without", "left_out", "half_life_events",
        "gain", "gain_interval", "gain_over", "n", "mde",
    }  # fmt: skip
    assert first.tags["state"] in ("champion", "former champion")
    assert float(first.tags["gain"]) > 0.0
    assert (first.tags["gate_verdict"], first.tags["trials"]) == ("passed", "3")  # three half-lives were tried
    assert stack.prefect(f"flow_runs/{first.tags['flow_run']}")["state_type"] == "COMPLETED"
    assert artifacts(stack, first) >= {
        "evidence/data.dvc", "evidence/dvc.lock", "evidence/params.yaml", "evidence/validator.json",
        "evidence/importance.json",
        "gate/evidence.html", "gate/verdict.json",
    }  # fmt: skip


def artifacts(stack, version):
    """Paths of the artifacts in the version's run, two folders deep."""
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    top = client.list_artifacts(version.run_id)
    return {file.path for folder in top for file in client.list_artifacts(version.run_id, folder.path)}


def test_the_model_from_mlflow_the_bundle_and_the_service_give_the_same_probabilities(stack, first):
    folder = stack.settings.bundles / first.digest
    with np.load(folder / "golden.npz") as f:
        golden = dict(f)
    rows = [[None if np.isnan(value) else value for value in row] for row in golden["rows"].tolist()]
    columns = json.loads((folder / "schema.json").read_text())["columns"]
    with quiet():
        import mlflow

        mlflow.set_tracking_uri(stack.settings.mlflow_url)
        registered = mlflow.pyfunc.load_model("models:/validator@champion")
        predicted = registered.predict(pd.DataFrame(golden["rows"], columns=columns))
    body = {"family": "validator", "rows": rows}
    answer = httpx.post(f"{stack.settings.model_url}/predict", json=body, headers=stack.key)
    expected = golden["p"]
    assert np.isfinite(expected).sum() >= 5
    np.testing.assert_allclose(predicted["p"].to_numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(np.array(answer.json()["p"], dtype=float), expected, atol=1e-6)
    assert answer.json()["digest"] == first.digest


def test_every_family_answers_its_own_example_loaded_from_mlflow_and_names_its_card_and_its_data(stack):
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    mlflow.set_tracking_uri(stack.settings.mlflow_url)
    for family in FAMILIES:
        made = stack.installation.tracking.versions(family)[-1]  # of the turn: tests register more
        bundle = load_bundle(stack.settings.bundles / made.digest, made.digest)
        with quiet():
            loaded = mlflow.pyfunc.load_model(f"models:/{family}/{made.version}")
            answered = loaded.predict(loaded.input_example)
        assert len(loaded.input_example) == (bundle.steps if bundle.steps > 1 else 5)
        one = int(np.flatnonzero(np.array(bundle.golden["status"]) == "OK")[0])
        golden = np.atleast_1d(bundle.golden["p"][one])
        row = answered.iloc[-1 if bundle.steps > 1 else 0]
        names = ["p"] if bundle.golden["p"].ndim == 1 else [f"p_{name}" for name in bundle.classes]
        np.testing.assert_allclose(row[names].to_numpy(dtype=float), golden, atol=1e-6)
        assert row["status"] == "OK"
        version = client.get_model_version(family, made.version)
        assert version.description == (stack.settings.bundles / made.digest / "card.md").read_text()
        used = [each.dataset for each in client.get_run(made.run_id).inputs.dataset_inputs]
        assert {each.name for each in used} == set(bundle.schema["symbols"])
        assert {each.digest for each in used} == {made.data_hash}
        assert all(json.loads(each.profile)["rows"] > 0 for each in used)


def test_prefect_shows_the_schedules_and_the_automation_of_the_drift_event(stack):
    schedules = {d["name"]: [s["active"] for s in d["schedules"]] for d in stack.prefect("deployments/filter", {})}
    assert {name for name, active in schedules.items() if active == [True]} == {
        "ingest", "monitor", "reconcile", "report", "retention", "retrain", "verify",
    }  # fmt: skip
    assert set(schedules) == {
        "ingest", "train", "evaluate", "promote", "reconcile", "monitor", "retrain", "report", "retention", "portfolio",
        "rollback", "verify", "lifecycle",
    }  # fmt: skip
    automation = next(a for a in stack.prefect("automations/filter", {}) if "drift" in a["name"])
    assert automation["enabled"]
    assert automation["trigger"]["expect"] == ["bellwether.retrain-requested"]
    assert automation["name"] == "bellwether-drift-requests-retrain"
    assert automation["actions"][0]["type"] == "run-deployment"
    form = stack.prefect("deployments/name/monitor/monitor")["parameter_openapi_schema"]["properties"]["symbol"]
    assert form["anyOf"][0]["enum"] == list(stack.installation.symbols)


def test_runs_are_named_for_what_they_made_and_show_how_far_they_are(stack, first):
    runs = {run["id"]: run["name"] for run in stack.prefect("flow_runs/filter", {})}
    hashes = {version.data_hash for version in stack.installation.tracking.versions("validator")}
    retrained = [name.split(" · ") for name in runs.values() if re.match(r"retrain validator \d+(, \w+ \d+)* ·", name)]
    assert retrained  # those that began no training keep their first name
    assert {(day[:4], len(data)) for _, day, data in retrained} == {("2024", 8)}
    assert any(name.startswith("train validator ") or ", validator 1" in name for name in runs.values())
    assert {data for *_, data in retrained} <= {each[:8] for each in hashes}
    shown = {artifact["key"]: artifact for artifact in stack.prefect("artifacts/latest/filter", {})}
    assert {shown[f"progress-{name}"]["data"] for name in ("ingest", "train", "retrain")} == {100.0}
    markets = json.loads(shown["ingest-markets"]["data"])
    assert [row["market"] for row in markets] == list(stack.installation.symbols)
    assert all(row["bars"] > 0 and row["left out"] == "" for row in markets)
    assert {row["version"] for row in json.loads(shown["train-versions"]["data"])} != {""}
    # of any retrain: the newest may have found that it need not train
    wanted = {"artifacts": {"key": {"any_": ["retrain-outcomes"]}}}
    outcomes = [json.loads(artifact["data"]) for artifact in stack.prefect("artifacts/filter", wanted)]
    assert any("the gate" in row["outcome"] for rows in outcomes for row in rows)


def test_the_line_of_the_readme_requests_a_retrain(stack):
    command = next(line for line in (ROOT / "README.md").read_text().splitlines() if "run retrain/retrain" in line)
    words = shlex.split(command.partition("  #")[0])
    assert words[0] == ".venv/bin/prefect"
    done = subprocess.run(
        [Path(sys.executable).with_name("prefect"), *words[1:], "--start-in", "3 days"],
        env=stack.env | processes.environment(stack.settings), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = stack.prefect("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
    (requested,) = [run for run in runs if run["parameters"].get("reason") == "the desk asked"]
    assert requested["parameters"]["families"] == ["validator", "regime"]
    stack.prefect(f"flow_runs/{requested['id']}", method="DELETE")


def test_runs_carry_links_to_the_mlflow_run_and_the_drift_report(stack, first):
    shown = stack.prefect("artifacts/filter", {})
    assert all(artifact["flow_run_id"] for artifact in shown)
    for key in ("candidate-validator", "verdict-validator", "drift-validator"):
        assert any(first.run_id in artifact["data"] for artifact in shown if artifact["key"] == key), key
    assert any("drift.html" in artifact["data"] for artifact in shown if artifact["key"] == "monitor")


def test_decisions_were_taken_over_http_with_reasons_and_models(stack):
    emitted = stack.store.decisions(emitted_only=True)
    assert emitted
    for record in emitted:
        assert record.decision.edge_bps > 0
        assert record.decision.models["validator"]["champion"].verdict == "passed"
        assert record.decision.stop is not None
    refused = [r.decision for r in stack.store.decisions() if r.decision.action == "NO_TRADE"]
    assert all(decision.reasons for decision in refused)
