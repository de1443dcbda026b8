"""Law L5 on the real registry, ledger and service: no matter who moves the champion, evidence decides."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError
from support.stack import COMMAND, register_again, until

from bellwether.operations import start_stop
from flows.support import aliases, ledger_chain, processes, promotion
from pipelines.errors import ChainBroken, GateRefused, UnknownName
from pipelines.sealed_folder import MANIFEST, sha256
from pipelines.settings import ROOT

pytestmark = pytest.mark.stack


def lines(stack, action):
    return [p for p in stack.store.promotions("validator") if p.action == action]


@pytest.fixture
def first(stack):
    """Version 1 is champion before and after, whatever the test moved."""
    version = lines(stack, "promote")[0].to_version
    assert stack.champion() == version
    yield version
    if stack.champion() != version:
        promotion.promote(stack.installation, "validator", version, "tests", "as it was")
    assert stack.champion() == version


# ---- without a passing verdict


def test_the_alias_moved_to_a_refused_version_is_put_back_ledgered_and_alarmed_within_seconds(stack, first, refused):
    before = len(lines(stack, "refuse"))
    stack.alias(refused)
    until(lambda: len(lines(stack, "refuse")) > before, 20.0, "the refusal on the ledger")
    until(
        lambda: stack.installation.tracking.version_by_alias("validator", "champion").version == first,
        10.0,
        "the alias to be back",
    )
    line = lines(stack, "refuse")[-1]
    assert (line.actor, line.from_version, line.to_version) == ("mlflow-ui", first, refused)
    assert line.verdict_passed is False
    assert "gain_over_champion" in line.reason
    assert any(a.kind == "alias_refused" and f"version {refused}" in a.detail for a in stack.store.alarms())
    answered = until(lambda: stack.tags(refused).get("bellwether.request"), 10.0, "the answer on the version")
    assert answered.startswith(f"refused: validator version {refused} is not promoted")
    assert stack.champion() == first


def test_a_verdict_tag_edited_by_hand_proves_nothing(stack, first, refused):
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    client.set_model_version_tag("validator", refused, "gate_verdict", "passed")
    stack.alias(refused)
    aliases.reconcile(stack.installation)
    client.set_model_version_tag("validator", refused, "gate_verdict", "refused")
    assert stack.installation.tracking.version_by_alias("validator", "champion").version == first
    assert stack.champion() == first


def test_a_digest_tag_edited_by_hand_proves_nothing(stack, first, refused):
    """The passing verdict is on other bytes under another version: borrowing its digest must not help."""
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    own, passed = (stack.installation.tracking.version("validator", v).digest for v in (refused, first))
    client.set_model_version_tag("validator", refused, "digest", passed)
    try:
        with pytest.raises(GateRefused, match="never judged"):
            promotion.promote(stack.installation, "validator", refused, "mallory", "looks fine")
    finally:
        client.set_model_version_tag("validator", refused, "digest", own)
    assert stack.champion() == first


def test_the_command_refuses_it_too_with_one_line_and_exit_code_1(stack, first, refused):
    done = stack.cli("promote", "validator", refused)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"GateRefused: validator version {refused} is not promoted: refused by the gate" in done.stderr
    assert "bellwether retrain validator" in done.stderr
    preview = stack.cli("promote", "validator", refused, "--dry-run")
    assert (preview.returncode, "would be refused" in preview.stdout) == (0, True)
    assert stack.champion() == first


def corrupted(bundle, published):
    """The registry promised other bytes than it now holds."""
    (published() / "model.npz").write_bytes(b"not what was judged")


def of_another_schema(bundle, published):
    schema = json.loads((bundle / "schema.json").read_text())
    schema["columns"][0] = "moon_phase"
    (bundle / "schema.json").write_text(json.dumps(schema))


def made_of_pickle(bundle, published):
    (bundle / "model.npz").rename(bundle / "model.pkl")


@pytest.mark.parametrize(
    ("spoil", "why"), [(corrupted, "sha256"), (of_another_schema, "moon_phase"), (made_of_pickle, "could carry code")]
)
def test_a_version_that_must_not_be_served_is_refused_though_it_passed_and_status_gives_the_reason(
    stack, first, tmp_path, spoil, why
):
    version = register_spoiled(stack, first, tmp_path / "bundle", spoil)
    stack.alias(version)
    until(
        lambda: stack.installation.tracking.version_by_alias("validator", "champion").version == first,
        20.0,
        "the alias to be back",
    )
    alarms = [alarm["detail"] for alarm in stack.json("status")["alarms"] if alarm["kind"] == "alias_refused"]
    assert any(why in detail for detail in alarms), alarms
    done = stack.cli("promote", "validator", version)
    assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    assert stack.champion() == first


def register_spoiled(stack, first, bundle, spoil):
    """Register another version whose verdict passed, of bytes that `spoil` changed. Return its number."""
    original = stack.installation.tracking.version("validator", first)
    shutil.copytree(stack.settings.bundles / original.digest, bundle)
    (bundle / "card.md").write_text(f"# {spoil.__name__}\n")
    later = spoil is corrupted
    if not later:
        spoil(bundle, None)
    files = {f.name: sha256(f.read_bytes()) for f in bundle.iterdir() if f.name != MANIFEST}
    (bundle / MANIFEST).write_text(json.dumps({"family": "validator", "format": 2, "files": files}))
    digest = sha256((bundle / MANIFEST).read_bytes())
    line = stack.store.promotions("validator")[0]
    version = register_again(
        stack.installation, replace(original, tags=original.tags | {"digest": digest}), line.evidence, bundle
    )
    if later:
        model_id = stack.client.get_model_version("validator", version).source.split("/")[-1]
        spoil(bundle, lambda: next(stack.settings.home.rglob(f"{model_id}/artifacts/artifacts/bundle")))
    return version


def test_the_removed_alias_is_put_back(stack, first):
    stack.alias(None)
    aliases.reconcile(stack.installation)
    assert stack.installation.tracking.version_by_alias("validator", "champion").version == first
    assert stack.champion() == first


@pytest.mark.parametrize("statement", ["UPDATE promotions SET actor = 'nobody'", "DELETE FROM promotions"])
def test_the_database_itself_refuses_to_rewrite_the_ledger(stack, statement):
    before = stack.store.promotions()
    with pytest.raises(DatabaseError, match="append-only"), stack.store.writing() as connection:
        connection.execute(sa.text(statement))
    assert stack.store.promotions() == before


# ---- with a passing verdict


def test_the_alias_moved_to_a_passing_version_is_a_promotion_by_mlflow_ui_and_rollback_undoes_it(stack, first, second):
    stack.alias(second)
    aliases.reconcile(stack.installation)
    promoted = lines(stack, "promote")[-1]
    assert (promoted.actor, promoted.from_version, promoted.to_version) == ("mlflow-ui", first, second)
    assert stack.champion() == second
    assert stack.installation.tracking.version_by_alias("validator", "previous").version == first
    back = stack.json("rollback", "validator", "--reason", "second thoughts")
    assert (back["champion"], back["was"]) == (first, second)
    assert stack.champion() == first
    line = lines(stack, "rollback")[-1]
    assert (line.from_version, line.to_version, line.reason) == (second, first, "second thoughts")
    assert stack.installation.tracking.version_by_alias("validator", "champion").version == first
    assert stack.installation.tracking.version_by_alias("validator", "previous") is None


def test_the_alias_moved_to_a_passing_version_is_served_within_seconds(stack, first, second):
    for name, value in {"by": "ann", "reason": "read the evidence"}.items():
        stack.client.set_model_version_tag("validator", second, f"bellwether.{name}", value)
    stack.alias(second)
    stack.followed(second)
    line = lines(stack, "promote")[-1]
    assert (line.actor, line.reason) == ("ann", "read the evidence")
    until(lambda: stack.tags(second).get("bellwether.request") == "promoted", 10.0, "the answer on the version")
    assert (stack.tags(second)["state"], stack.tags(first)["state"]) == ("champion", "former champion")
    stack.alias(first)
    stack.followed(first)
    promotion.rollback(stack.installation, "validator", "tests", "as it was")
    promotion.rollback(stack.installation, "validator", "tests", "as it was")
    assert stack.champion() == first


def test_the_deployment_reconciles_too(stack):
    stack.wait(stack.start("reconcile", {}), "COMPLETED")


def test_a_generation_file_behind_the_ledger_is_rewritten(stack, first):
    file = stack.settings.serving_dir / "generation.json"
    content = json.loads(file.read_text())
    content["families"]["validator"]["champion"] = None
    content["generation"] += 1
    file.write_text(json.dumps(content))
    until(lambda: json.loads(file.read_text())["generation"] > content["generation"], 20.0, "a new generation")
    stack.followed(first)


def test_without_a_previous_champion_rollback_is_refused_and_moves_nothing(stack, first):
    done = stack.cli("rollback", "validator")
    assert done.returncode == 1
    assert "UnknownName: validator has no previous champion to go back to" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert stack.champion() == first


def test_promoting_the_champion_again_does_not_make_it_its_own_predecessor(stack, first):
    promotion.promote(stack.installation, "validator", first, "ann", "once more")
    with pytest.raises(UnknownName, match="no previous champion"):
        promotion.rollback(stack.installation, "validator", "ann", "nowhere to go")


# ---- a person approves or declines in Prefect

PROMOTE_MANUALLY = (
    "from bellwether.cli.connection import connect; connect(); import sys; from flows.promote import promote;"
    "sys.exit(promote('validator', sys.argv[1], approval='manual'))"
)


def suspended(stack, known=()):
    """Return the promote runs that wait for a person, other than those known before."""
    runs = stack.prefect("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}})
    return [run["id"] for run in runs if run["id"] not in known]


def waiting(stack):
    return [alarm.detail for alarm in stack.store.alarms() if alarm.kind == "approval_waits"]


def killed(stack, name):
    pid = processes.services(stack.settings)[name]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.services(stack.settings)[name]["pid"] != pid, 20.0, f"{name} to be gone")
    start_stop.up(stack.settings, [name])


def test_a_promotion_by_hand_holds_no_process_and_outlives_a_kill_until_it_is_declined_or_approved(
    stack, first, second
):
    before = len(lines(stack, "promote"))
    # a run that no deployment started cannot be suspended: it starts one that waits, and ends
    assert subprocess.run([sys.executable, "-c", PROMOTE_MANUALLY, second], cwd=ROOT, env=connected(stack), check=False,
                          timeout=120).returncode == 0  # fmt: skip
    [to_decline] = until(lambda: suspended(stack), 60.0, "the run that is to be declined")
    to_approve = stack.start("promote", {"family": "validator", "version": second, "approval": "manual"})
    until(lambda: suspended(stack, [to_decline]), 60.0, "the run that is to be approved")
    assert len(waiting(stack)) == 2
    assert any(to_approve in text and f"version {second} waits" in text for text in waiting(stack))
    until(lambda: not workers(stack), 20.0, "no process to be held")

    killed(stack, "flows")
    assert sorted(suspended(stack)) == sorted([to_decline, to_approve])

    for entered in ({}, {"approve": True, "name": " ", "reason": "x"}, {"approve": True, "name": "ann", "reason": ""}):
        assert stack.prefect(f"flow_runs/{to_approve}/resume", {"run_input": entered})["status"] == "REJECT"
    assert len(suspended(stack)) == 2
    case = described(stack, to_approve)
    assert f"version **{second}**" in case
    assert "in place of version" in case
    assert f"{stack.settings.mlflow_url}/#/experiments/" in case
    assert "Gain over the champion" in case

    resume(stack, to_decline, approve=False, name="bob", reason="not on a Friday")
    stack.wait(to_decline, "COMPLETED")
    assert len(lines(stack, "promote")) == before  # neither the waiting nor the declined run has moved anything
    resume(stack, to_approve, approve=True, name="ann", reason="read the evidence")
    stack.wait(to_approve, "COMPLETED")
    line = lines(stack, "promote")[-1]
    assert (line.actor, line.reason, line.to_version) == ("ann", "read the evidence", second)
    assert len(lines(stack, "promote")) == before + 1
    assert waiting(stack) == []
    assert stack.champion() == second
    promotion.rollback(stack.installation, "validator", "tests", "as it was")


def test_a_promotion_not_decided_in_time_fails_raises_an_alarm_and_moves_nothing(stack, first, second):
    run_id = stack.start(
        "promote", {"family": "validator", "version": second, "approval": "manual", "wait_hours": 2 / 3600}
    )
    stack.wait(run_id, "FAILED")
    stack.wait(stack.start("reconcile", {}), "COMPLETED")
    assert waiting(stack) == []
    (alarm,) = [alarm for alarm in stack.store.alarms() if alarm.kind == "approval_lapsed"]
    assert f"validator version {second} was not decided by anybody" in alarm.detail
    assert run_id in alarm.detail
    assert stack.champion() == first
    stack.store.clear_alarm(alarm.id, alarm.at)


def workers(stack):
    """Return the processes that run a flow."""
    return [p for p in processes.home_processes(stack.settings) if "prefect.engine" in " ".join(p.cmdline())]


def described(stack, run_id):
    """Return the text of the form that resumes a run."""
    state = stack.prefect(f"flow_runs/{run_id}")["state"]
    key = state["state_details"]["run_input_keyset"]["description"]
    return stack.prefect(f"flow_runs/{run_id}/input/{key}")


def resume(stack, run_id, **entered):
    """Resume a suspended run with this form."""
    answer = stack.prefect(f"flow_runs/{run_id}/resume", {"run_input": entered})
    assert answer["status"] == "ACCEPT", answer


def connected(stack):
    return {**os.environ, **stack.env, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}


# ---- the ledger's chain


def rewrite(stack, change):
    """Change the net result of one outcome by SQL."""
    with stack.store.writing() as connection:
        connection.exec_driver_sql(
            f"UPDATE outcomes SET net_bps = net_bps + {change} "
            "WHERE decision_id = (SELECT MIN(decision_id) FROM outcomes)"
        )


def test_a_ledger_that_was_edited_moves_no_champion_while_decisions_go_on(stack, first, second):
    assert stack.json("verify", "--all")["intact"] is True
    assert stack.json("verify")["since_line"] > 0
    rewrite(stack, 1.0)
    try:
        done = stack.cli("verify", "--all")
        assert done.returncode == 1
        assert "edited" in done.stdout
        with pytest.raises(ChainBroken, match="was edited"):
            ledger_chain.require(ledger_chain.verify(stack.installation, everything=True))
        assert stack.cli("decide").returncode == 0
        assert stack.champion() == first
        assert any(alarm.kind == "chain_broken" for alarm in stack.store.alarms())
    finally:
        rewrite(stack, -1.0)
    assert stack.json("verify", "--all")["faults"] == []
    assert not any(alarm.kind == "chain_broken" for alarm in stack.store.alarms())


def test_mlflow_holds_the_newest_anchor(stack, first):
    anchored = stack.json("verify")["anchored_line"]
    assert stack.installation.tracking.chain_anchor()[0] == anchored == stack.store.chain_head().seq


def test_a_champion_deleted_in_mlflow_is_alarmed_and_serves_on(stack, first):
    from mlflow import MlflowClient

    original = stack.installation.tracking.version("validator", first)
    verdict = stack.store.verdict("validator", first, original.digest)
    version = register_again(stack.installation, original, verdict.evidence)
    promotion.promote(stack.installation, "validator", version, "tests", "to be deleted")
    stack.followed(version)
    MlflowClient(stack.settings.mlflow_url).delete_model_version("validator", version)
    until(lambda: any(a.kind == "version_deleted" for a in stack.store.alarms()), 20.0, "the alarm")
    assert stack.cli("decide").returncode == 0
    assert stack.champion() == version
