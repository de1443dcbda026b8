"""A champion's version that was deleted in MLflow is alarmed once and stays champion, on either database."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.registry import empty_registry, registry_in

from flows.support import aliases
from flows.support.installation import Installation
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion
from serving.service.home_store import open_store

__all__ = ["empty_registry"]
T0 = datetime(2024, 1, 1, tzinfo=UTC)
LINE = Promotion(T0, "policy", "challenge", "validator", "challenger", None, "1", "ab" * 32, "r", "d", "c", True, "why")


@pytest.fixture
def installation(url, tmp_path, monkeypatch, empty_registry):
    """An installation whose champion is version 1 of a registry in a file."""
    monkeypatch.chdir(tmp_path)  # a store without a server stores artifacts next to itself
    where = Settings(home=tmp_path / "home", store_url=url, mlflow_port=9)
    opened = Installation(where, load_params(), open_store(where))
    opened.store.add_promotion(LINE)
    opened.store.add_promotion(replace(LINE, action="promote", arm="champion"))
    opened.tracking = registry_in(tmp_path, empty_registry)
    yield opened
    opened.store.close()


def test_a_deleted_champion_is_alarmed_once_and_stays_on_the_ledger(installation):
    from mlflow import MlflowClient

    client = MlflowClient(installation.tracking.url)
    client.create_registered_model("validator")
    client.create_model_version("validator", "file:///nowhere", tags={"digest": "ab" * 32})
    installation.tracking.set_alias("validator", "champion", "1")
    assert aliases.reconcile(installation, ["validator"]) == []
    client.delete_model_version("validator", "1")
    for _ in range(2):
        assert aliases.reconcile(installation, ["validator"]) == []
    (alarm,) = installation.store.alarms()
    assert (alarm.kind, "serves on from its bundle" in alarm.detail) == ("version_deleted", True)
    assert installation.store.slots("validator").champion.to_version == "1"


def test_the_anchor_in_mlflow_comes_back_and_one_that_was_edited_is_none(installation):
    assert installation.tracking.chain_anchor() is None
    installation.tracking.set_chain_anchor(7, "ab" * 32, "2024-01-01T00:00:00+00:00")
    assert installation.tracking.chain_anchor() == (7, "ab" * 32, "2024-01-01T00:00:00+00:00")
    from mlflow import MlflowClient

    client = MlflowClient(installation.tracking.url)
    experiment = client.get_experiment_by_name("bellwether")
    client.set_experiment_tag(experiment.experiment_id, "bellwether.chain_anchor", "who knows")
    assert installation.tracking.chain_anchor() is None
