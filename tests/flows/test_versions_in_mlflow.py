"""What a version says and does in MLflow: it answers its own example, names its data, and answers who asked for it."""

import asyncio
import json
import threading
from datetime import timedelta

import httpx
import numpy as np
import pandas as pd
import pytest
from support.registry import empty_registry, registry_in
from support.serving_fixture import make_bundle
from support.stack import quiet, until

from flows.support import aliases, promotion, version_tags
from flows.support.installation import Installation, now
from pipelines.contracts import Check, Point, Verdict
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers, example
from pipelines.settings import Settings, load_params
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.tracking import DataSet
from serving.inference.generation import write_generation
from serving.service.home_store import open_store

__all__ = ["empty_registry"]
DATA_HASH = "d335e23d9f1432e8099436c1f33f0596.dir"
PASSED = Check("gain_over_champion", True, 0.0012, 0.0002, 0.0022, "low > 0", 900, "in log loss", 0.001)
REFUSED = Check("rows", False, 10.0, None, None, ">= 200", 10)
FIGURES = {
    "gain_over": {"base_rate": {"value": 0.01234, "low": 0.009, "high": 0.0157, "n": 4200}},
    "detectable": {"loss": {"least": 0.0061}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory, empty_registry):
    """An installation with MLflow in a file: versions 1 and 2 of a validator passed the gate, version 3 did not."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # a store without a server stores artifacts next to itself
        where = Settings(home=folder, store_url="", mlflow_port=9)
        made = Installation(where, load_params(), open_store(where))
        with quiet():
            made.tracking = registry_in(folder, empty_registry)
        patch.setattr(promotion, "install_warm_starts", lambda installation: {})
        write_generation(made.settings.serving_dir, {}, {"SIM/USDT": {}}, now())
        for number, check in enumerate((PASSED, PASSED, REFUSED)):
            judge(made, register(made, 0.1 * number), check)
        yield made
        made.store.close()


def register(installation, bias):
    """Register a small validator and return its version."""
    rows = np.random.default_rng(3).normal(size=(64, len(VALIDATOR_COLUMNS)))
    digest = make_bundle(installation.settings.bundles, VALIDATOR_COLUMNS, rows, bias)
    model = load_bundle(installation.settings.bundles / digest, digest)
    asked = example(model)
    with quiet():
        return installation.tracking.log_candidate(
            "validator",
            installation.settings.bundles / digest,
            params={},
            metrics={"loss.model.value": 0.6},
            points=[Point("walk_forward/loss", number, 0.6 + 0.01 * number, 1.7e9 + number) for number in (1, 2)],
            files=[],
            tags={"digest": digest, "data_hash": DATA_HASH, "git_commit": "c", "symbols": "SIM/USDT"},
            title="t",
            example=(asked, answers(model, asked)),
            data=[DataSet("SIM/USDT", DATA_HASH, installation.versions / DATA_HASH, model.columns, {"rows": 42})],
        )


def judge(installation, version, check):
    """Put a verdict of this one check on a version, as the flow `evaluate` does."""
    reasons = () if check.passed else (f"{check.name}: {check.value}",)
    verdict = Verdict("validator", bool(check.passed), (check,), reasons)
    tags = {"trials": "3", **version_tags.comparison(verdict, FIGURES)}
    installation.tracking.record_verdict("validator", version.version, verdict.passed, {}, [], tags)
    promotion.challenge(installation, version, verdict, [], actor="gate")


def tags_of(installation, version):
    return installation.tracking.version("validator", version).tags


def states(installation):
    return {version.version: version.tags["state"] for version in installation.tracking.versions("validator")}


def ask(installation, version, **tags):
    """Move the champion alias to a version as a person does, who and why first. Return the newest ledger line."""
    from mlflow import MlflowClient

    for name, value in tags.items():
        MlflowClient(installation.tracking.url).set_model_version_tag("validator", version, f"bellwether.{name}", value)
    installation.tracking.set_alias("validator", "champion", version)
    aliases.reconcile(installation, ["validator"])
    return installation.store.promotions("validator")[-1]


def post(app, body):
    """Ask MLflow's scoring server, which `mlflow models serve` starts, here in this process."""

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mlflow") as client:
            return await client.post("/invocations", json=body)

    return asyncio.run(send())


def test_a_version_answers_its_own_example_loaded_and_served_and_its_answers_are_json(home):
    from mlflow.pyfunc import scoring_server

    import mlflow

    with quiet():
        loaded = mlflow.pyfunc.load_model("models:/validator/1")
        answered = loaded.predict(loaded.input_example)
        served = scoring_server.init(loaded)
    assert answered["status"].tolist() == ["OK"] * 5
    asked = {"dataframe_split": loaded.input_example.to_dict(orient="split")}
    asked["dataframe_split"]["data"][1][0] = None  # a value that is missing
    answer = post(served, asked)
    assert answer.status_code == 200
    first, second = json.loads(answer.text, parse_constant=pytest.fail)["predictions"][:2]
    assert first["p"] == pytest.approx(answered["p"][0], abs=1e-9)
    assert (second["status"], second["p"]) == ("ABSTAIN", None)
    assert second["reason"].startswith("MISSING")
    refused = post(served, {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}})
    assert refused.status_code == 400
    assert VALIDATOR_COLUMNS[0] in refused.text


def test_a_version_has_a_signature_a_card_its_data_and_charts(home):
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient(home.tracking.url)
    version = client.get_model_version("validator", "1")
    assert version.description == "# test model\n"
    signature = mlflow.models.get_model_info("models:/validator/1").signature
    assert tuple(signature.inputs.input_names()) == VALIDATOR_COLUMNS
    assert {"status": "string", "reason": "string", "p": "double"}.items() <= {
        column.name: column.type.name for column in signature.outputs
    }.items()
    run = client.get_run(version.run_id)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("SIM/USDT", DATA_HASH)
    assert json.loads(used.dataset.profile) == {"rows": 42}
    (home.versions / DATA_HASH).mkdir(parents=True)
    assert mlflow.data.get_source(used.dataset).load() == str(home.versions / DATA_HASH)
    found = client.search_runs([run.info.experiment_id], f"dataset.digest = '{DATA_HASH}'")
    assert len(found) == 3
    history = client.get_metric_history(version.run_id, "walk_forward/loss")
    assert [(each.step, round(each.value, 2)) for each in history] == [(1, 0.61), (2, 0.62)]


def test_its_bundle_is_stored_once_and_comes_back_as_it_was(home, tmp_path):
    version = home.tracking.version("validator", "1")
    fetched = home.tracking.download_bundle(version, tmp_path)
    assert load_bundle(fetched, version.digest).digest == version.digest
    assert len(list(home.settings.home.glob(f"mlruns/**/{version.digest}/manifest.json"))) == 1


def test_tags_compare_versions_and_the_answer_to_a_request_is_on_the_version(home):
    tags = tags_of(home, "1")
    assert {name: tags[name] for name in ("gain", "gain_interval", "gain_over", "n", "mde", "trials")} == {
        "gain": "0.01234", "gain_interval": "[0.009, 0.0157]", "gain_over": "base_rate", "n": "4200", "mde": "0.0061",
        "trials": "3",
    }  # fmt: skip
    assert tags["gain_over_champion"] == "0.0012, [0.0002, 0.0022], n 900"
    assert states(home) == {"1": "passed", "2": "passed", "3": "challenger, refused"}
    promotion.promote(home, "validator", "1", "policy", "passed the gate")
    assert states(home) == {"1": "champion", "2": "passed", "3": "challenger, refused"}

    line = ask(home, "2", by="ann", reason="reads the book\nbetter")
    assert (line.action, line.actor, line.reason) == ("promote", "ann", "reads the book better")
    assert states(home) == {"1": "former champion", "2": "champion", "3": "challenger, refused"}
    assert tags_of(home, "2")["bellwether.request"] == "promoted"
    assert not {"bellwether.by", "bellwether.reason"} & tags_of(home, "2").keys()  # of one request, not of the next

    line = ask(home, "3", by="policy", reason="let it in")
    assert (line.action, line.actor, line.evidence["asked_because"]) == ("refuse", "mlflow-ui", "let it in")
    assert tags_of(home, "3")["bellwether.request"].startswith("refused: validator version 3 is not promoted: refused")
    assert home.tracking.version_by_alias("validator", "champion").version == "2"

    ask(home, None)
    assert "bellwether rollback" in tags_of(home, "2")["bellwether.request"]
    promotion.rollback(home, "validator", "ann", "second thoughts")
    assert states(home) == {"1": "champion", "2": "former champion", "3": "challenger, refused"}


def test_a_request_that_has_to_wait_is_queued_and_then_promoted(home):
    home.store.acquire_lease("promotion", "elsewhere:1", now(), timedelta(minutes=1))
    done = threading.Thread(target=ask, args=(home, "2"))
    done.start()
    until(lambda: tags_of(home, "2").get("bellwether.request") == "queued", 30.0, "the request to be queued")
    home.store.release_lease("promotion", "elsewhere:1")
    done.join(60.0)
    assert tags_of(home, "2")["bellwether.request"] == "promoted"
    assert states(home)["2"] == "champion"
    promotion.promote(home, "validator", "1", "ann", "as it was")
    assert "bellwether.request" not in tags_of(home, "2")  # no answer to the next request


def test_answers_of_a_model_keep_numbers_for_python_and_say_null_in_json(home):
    digest = home.tracking.version("validator", "1").digest
    model = load_bundle(home.settings.bundles / digest, digest)
    rows = example(model)
    rows.iloc[0, 0] = np.nan
    found = answers(model, rows)
    assert found["p"].dtype == float
    assert np.isnan(found["p"][0])
    assert found.to_dict(orient="records")[0]["p"] is None
    pd.testing.assert_frame_equal(answers(model, rows[rows.columns[::-1]]), found)
