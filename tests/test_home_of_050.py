"""A home that release 0.5.0 left, with the services of this one: what is read, and what is refused with its remedy."""

import json
import re
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.command_line import COMMAND, environment

from bellwether.operations import start_stop
from benchmarks.ports import free_ports
from pipelines.permissions import restrict
from pipelines.settings import ROOT, Settings, load_params
from pipelines.store import Store
from serving.service.home_store import open_store
from serving.state.online_weights_store import OnlineWeightsStore
from serving.state.tiers import TierStore

FIXTURE = ROOT / "tests" / "fixtures" / "home_of_050"
PORTS = ("MLFLOW", "DECISION")


@dataclass
class EarlierHome:
    """The home after `bellwether restore`, and its commands."""

    env: dict[str, str]
    restored: subprocess.CompletedProcess[str]

    @property
    def settings(self) -> Settings:
        ports = {f"{name.lower()}_port": int(self.env[f"BELLWETHER_{name}_PORT"]) for name in PORTS}
        return Settings(_env_file=None, home=Path(self.env["BELLWETHER_HOME"]), **ports)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *words], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> EarlierHome:
    """A backup of 0.5.0 restored, with the bundles, tiers, online weights and registry that lay next to its store."""
    restrict()
    folder = tmp_path_factory.mktemp("earlier") / "home"
    ports = {f"BELLWETHER_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    env = environment(folder) | ports
    done = subprocess.run(
        [COMMAND, "restore", str(FIXTURE / "backup.zip"), "--json"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    with zipfile.ZipFile(FIXTURE / "rest.zip") as archive:
        archive.extractall(folder)
    return EarlierHome(env, done)


@pytest.fixture(scope="module")
def served(home) -> Iterator[EarlierHome]:
    """Its registry and its decision service, started by this release."""
    start_stop.up(home.settings, [name.lower() for name in PORTS], ready=False)
    yield home
    start_stop.down(home.settings)


def test_its_backup_is_restored_whole(home):
    assert home.restored.returncode == 0, home.restored.stderr
    with closing(Store.open(home.settings.store)) as store:
        decisions, promotions = list(store.decisions()), store.promotions()
    assert (len(decisions), len(promotions)) == (192, 7)
    newest = decisions[-1].decision
    assert newest.category_scores.keys() >= {"cmt", "ict"}  # `said` in 0.5.0
    assert newest.models["validator"]["champion"].role == "active"  # `acts` in 0.5.0
    assert not [word for record in decisions for word in record.decision.reasons if word.startswith("NO_VOICE")]


def test_its_models_serve_and_its_warm_start_is_refused_with_what_to_do(served):
    status = served.json("status")
    versions = {
        family: slots["champion"] and slots["champion"]["version"] for family, slots in status["families"].items()
    }
    assert versions == {"validator": "1", "pattern": "1", "regime": "1", "predictor": None}
    assert (status["health"], status["services"]["decision"]["state"]) == ("UNHEALTHY", "not ready")
    (alarm,) = status["alarms"]
    assert alarm["kind"] == "warm_start_refused"
    assert re.search(
        r"before 0\.9\.0, which named no trading calendar\. `bellwether up` folds the history again", alarm["detail"]
    )
    models = httpx.get(f"{served.settings.decision_url}/models", timeout=30).json()
    assert (models["refused"], models["families"]["pattern"]["champion"]["version"]) == ([], "1")


def test_its_tiers_and_online_weights_are_read(home):
    rules = load_params().tiers
    state = TierStore(home.settings.serving_dir / "tiers.json", rules)["SIM/USDT"]
    assert (state.tier, state.tier_floor) == (1, 1)
    weights = OnlineWeightsStore(home.settings.serving_dir / "online_weights.json", load_params())
    assert weights.since is not None


def test_every_link_of_its_newest_decision_holds(served):
    lineage = served.json("lineage")
    assert lineage["broken"] == []
    assert lineage["links"]["validator.champion.ledger_line"] == "7: promote by policy, passed the gate"


def test_a_decision_of_another_catalogue_is_not_replayed_and_the_remedy_is_named(home):
    replayed = home.run("replay", "--last", "1", "--json")
    assert replayed.returncode == 1
    assert "`bellwether up` folds the history again" in str(json.loads(replayed.stdout)["not_replayable"])


def test_a_rollback_loads_its_bundle_and_refuses_where_there_is_no_earlier_champion(served):
    refused = served.run("rollback", "validator")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "UnknownName: validator has no previous champion" in refused.stderr
    with closing(open_store(served.settings)) as store:
        (first,) = [line for line in store.promotions("validator") if line.action == "promote"]
        store.add_promotion(replace(first, from_version="1", to_version="2"))
    assert served.json("rollback", "validator")["champion"] == "1"
    assert served.json("status")["families"]["validator"]["champion"]["version"] == "1"
