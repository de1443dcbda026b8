"""An experiment on the running services: begun in MLflow, seen in every command, predicted by both arms, ended."""

import json
import shutil

import pytest
from support.stack import register_again, until

from flows.support import experiments, promotion
from flows.support.installation import now
from pipelines.sealed_folder import MANIFEST, seal
from pipelines.store import Transition

pytestmark = pytest.mark.stack
BASIS = {
    "unit": "log loss", "bound": 0.15, "rows": "champion and candidate", "blocks": 40, "skill": 0.02,
    "least_gain": 0.002, "trade_bound_bps": 60.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def candidate(stack, tmp_path_factory):
    """Return a version with a passing verdict and other bytes than the champion: the same model, another card."""
    first = stack.slots().champion
    bundle = tmp_path_factory.mktemp("candidate") / "bundle"
    shutil.copytree(stack.settings.bundles / first.digest, bundle)
    made_by = {k: v for k, v in json.loads((bundle / MANIFEST).read_text()).items() if k != "files"}
    (bundle / "card.md").write_text((bundle / "card.md").read_text() + "\nThe same model again.\n")
    (bundle / MANIFEST).unlink()
    digest = seal(bundle, made_by)
    judged = stack.store.verdict("validator", first.to_version, first.digest)
    original = stack.installation.tracking.version("validator", first.to_version)
    return register_again(stack.installation, original, judged.evidence, bundle, digest, BASIS)


def test_the_alias_challenger_moved_in_mlflow_begins_one_that_every_command_shows(stack, candidate):
    client, champion = stack.client, stack.slots().champion
    client.set_model_version_tag("validator", candidate, "bellwether.by", "ann")
    client.set_model_version_tag("validator", candidate, "bellwether.reason", "a second look")
    taken = stack.slots().challenger.to_version
    client.set_registered_model_alias("validator", "challenger", taken if taken != candidate else champion.to_version)
    until(lambda: stack.installation.tracking.aliases()["validator"]["challenger"] == candidate, 20.0, "the alias back")
    begun = stack.json("ab", "start", "validator", candidate, "--reason", "a second look")
    assert (begun["state"], begun["champion"], begun["challenger"]) == ("shadow", champion.to_version, candidate)
    listed = stack.json("ab", "list")
    assert [
        one["id"] for one in listed["experiments"] if one["state"] == "shadow" and one["family"] == "validator"
    ] == [begun["id"]]
    assert listed["alpha_left"] == pytest.approx(1.0 - begun["alpha"])
    shown = stack.cli("ab", "show", str(begun["id"]), env=stack.env | {"COLUMNS": "80"})
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "It wins when the e-value reaches 50" in " ".join(shown.stdout.split())
    again = stack.cli("ab", "start", "validator", candidate)
    assert (again.returncode, f"ab stop {begun['id']}" in again.stderr) == (1, True)
    dry = stack.json("promote", "validator", candidate, "--dry-run")["message"]
    assert f"would raise the alarm promoted_without_experiment and close experiment {begun['id']}: " in dry
    decided = stack.json("decide")
    arms = decided["models"]["validator"]
    assert arms["challenger"]["digest"] == stack.installation.tracking.version("validator", candidate).digest
    assert arms["champion"]["digest"] == champion.digest
    assert experiments.running(stack.installation, "validator").number == begun["id"]
    stopped = stack.json("ab", "stop", str(begun["id"]), "--reason", "it is the same model")
    assert stopped["state"] == "stopped"
    verified = stack.json("ab", "verify", str(begun["id"]))
    assert (verified["same"], verified["state"]) == (True, "running")
    assert stack.champion() == champion.to_version


def test_in_a_split_the_challenger_decides_and_a_guardrail_gives_every_close_back_within_seconds(stack, candidate):
    """The served model is the same in both arms, so that only the record says which one decided."""
    begun = stack.json("ab", "start", "validator", candidate, "--reason", "to split")
    first, number = stack.store.experiment(begun["id"]).origin_s, begun["id"]
    stage = {"from_block": 0, "until_block": 99, "weight": 1.0 - 1e-9}
    stack.store.move_experiment(
        Transition(number, now(), first, "split", "policy", "as if it had won", {"stage": stage})
    )
    promotion.publish(stack.installation)
    until(lambda: stack.json("decide")["arm"] == "challenger", 20.0, "the challenger to decide")
    decided = stack.json("decide")
    assert decided["lineage"]["arm of validator"] == f"experiment {number} block 0 challenger"
    assert decided["p"] == decided["models"]["validator"]["challenger"]["p"]
    stack.store.raise_alarm("guardrail", "high", f"experiment {number}: validator challenger: a drill", now())
    until(lambda: stack.json("decide")["arm"] == "champion", 20.0, "the champion to decide again")
    assert stack.store.experiment_state(number) == "stopped"
    assert "guardrail" in stack.store.transitions(number)[-1].reason
    shown = stack.json("ab", "show", str(number))
    assert {one["metric"] for one in shown["guardrails"]} >= {"fault", "latency", "drawdown"}
