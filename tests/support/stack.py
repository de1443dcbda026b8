"""One real stack for all integration tests: seven services and one whole turn, started and stopped like a user's."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bellwether.operations import start_stop
from benchmarks.ports import free_ports
from flows.support import processes, promotion
from flows.support.installation import Installation
from pipelines.contracts import Check, Verdict
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers, example
from pipelines.permissions import restrict
from pipelines.settings import ROOT, Settings, load_params
from pipelines.store import LedgerSlots, Store
from pipelines.tracking import Version
from serving.client import Client
from serving.service.home_store import open_store
from serving.service.keys import write_key

TURN_SECONDS = 1500.0
STOP_SECONDS = 60.0
PATIENCE_S = 2 * processes.START_SECONDS  # with one command: `up` itself waits for the services so long
PORTS = ("mlflow_port", "prefect_port", "decision_port", "model_port", "evidently_port")
COMMAND = Path(sys.executable).with_name("bellwether")
# splits and gate are those of the project; there are fewer days, and the families train on less, to finish sooner.
# The whole year, which `data.dvc` describes, is trained on in tests/training/test_controls.py.
SHORTER = {
    "universe": {"symbols": ["SIM/USDT", "SIMB/USDT"], "groups": {}},
    # at the default edge 150 days hold too few events for a champion; the drift lies inside the live days
    "simulator": {"history_days": 150, "edge": 1.3, "live_days": 12, "drift_after_live_days": 5},
    "predictor": {"max_windows": 500, "epochs": 1, "folds": 1, "forest": {"trees": 20}, "boosted": {"trees": 20}},
    "pattern": {"max_windows": 600, "epochs": 2, "folds": 1, "forest": {"trees": 30}, "boosted": {"trees": 30}},
    "regime": {"em_iterations": 20, "folds": 1},
    "importance": {"repeats": 1},
}


def environment(home: Path) -> dict[str, str]:
    """Return the environment of an installation of its own under `home`; our variables set outside are dropped."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("BELLWETHER_") and k not in ("CI", "COLUMNS")}
    ports = zip(PORTS, free_ports(len(PORTS)), strict=True)
    kernels = {k: v for k, v in os.environ.items() if k == "BELLWETHER_KERNEL_CACHE"}  # compiled code is shared
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for family, changes in SHORTER.items():
        for name, value in changes.items():
            params[family][name] = {**params[family][name], **value} if isinstance(value, dict) and value else value
    file = home.with_name("params.yaml")
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    own = {"BELLWETHER_HOME": str(home), "BELLWETHER_PARAMS_FILE": str(file)}
    own |= {"BELLWETHER_JOB_NICENESS": "0"}  # other tests run next to it, at niceness 0, and jobs must end meanwhile
    return outside | kernels | own | {f"BELLWETHER_{name.upper()}": str(port) for name, port in ports}


def until(holds: Callable[[], Any], seconds: float, what: str, seen: Callable[[], str] | None = None) -> Any:
    """Return the first true answer of `holds`. Fails after `seconds`, naming what was awaited and what was `seen`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}" + (f"\n{seen()}" if seen else ""))
        time.sleep(0.25)
    return found


def repository() -> set[str]:
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(status.stdout.splitlines())


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of MLflow while it is imported, logs and loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Stack:
    """Drive the running installation: commands, HTTP, registry, store."""

    env: dict[str, str]
    log: Path

    @cached_property
    def settings(self) -> Settings:
        ports = {name: int(self.env[f"BELLWETHER_{name.upper()}"]) for name in PORTS}
        own = {name: Path(self.env[f"BELLWETHER_{name.upper()}"]) for name in ("home", "params_file")}
        return Settings(_env_file=None, **own, **ports)

    @cached_property
    def installation(self) -> Installation:
        return Installation(self.settings, load_params(self.settings.params_file), open_store(self.settings))

    @property
    def store(self) -> Store:
        return self.installation.store

    def cli(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *words],
            cwd=ROOT,
            env=env or self.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def json(self, *words: str) -> Any:
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def slots(self, family: str = "validator") -> LedgerSlots:
        """Return the slots of a family on the ledger."""
        return self.store.slots(family)

    def champion(self) -> str | None:
        """Return the version on which ledger, generation file and the answering process agree."""
        line = self.slots().champion
        version = line.to_version if line else None
        with Client(self.settings) as client:
            generation = json.loads((self.settings.serving_dir / "generation.json").read_text())["generation"]
            served = client.wait_for_generation(generation)["families"]["validator"]["champion"]
        assert (served and served["version"]) == version
        assert (served and served["digest"]) == (line and line.digest)
        return version

    def followed(self, version: str) -> None:
        """Wait until ledger and generation file have this champion, then check that it is served."""
        file = self.settings.serving_dir / "generation.json"

        def there() -> bool:
            line, served = self.slots().champion, json.loads(file.read_text())["families"]["validator"]["champion"]
            return (line and line.to_version) == (served and served["version"]) == version

        until(there, 20.0, f"version {version} on the ledger and in the generation file")
        assert self.champion() == version

    def alias(self, version: str | None) -> None:
        """Move the champion alias in MLflow, as a person does."""
        self.installation.tracking.set_alias("validator", "champion", version)

    @property
    def client(self) -> Any:
        """Return MLflow's own client of the registry."""
        from mlflow import MlflowClient

        return MlflowClient(self.settings.mlflow_url)

    def tags(self, version: str) -> dict[str, str]:
        """Return what MLflow shows of a validator's version."""
        return self.installation.tracking.version("validator", version).tags

    @property
    def key(self) -> dict[str, str]:
        """Return the header with the key."""
        return {"Authorization": f"Bearer {write_key(self.settings)}"}

    def counts(self) -> dict[str, int]:
        """Return how many rows are stored of what must never be lost or invented."""
        with closing(sqlite3.connect(self.settings.home / "store.db")) as database:
            names = ("bars", "decisions", "outcomes", "promotions")
            return {n: database.execute(f"SELECT count(*) FROM {n}").fetchone()[0] for n in names}

    def prefect(self, path: str, body: dict[str, Any] | list[Any] | None = None, method: str = "") -> Any:
        """Send a request to Prefect's API, by default GET or, with a body, POST. Return its answer, None if empty."""
        url = f"{self.settings.prefect_url}/api/{path}"
        for _ in range(10):  # Prefect answers 503 while its SQLite is busy, and wants its clients to retry
            verb = method or ("GET" if body is None else "POST")
            answer = httpx.request(verb, url, json=body, headers=self.key, timeout=30)
            if answer.status_code != 503:
                break
            time.sleep(1.0)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def start(self, name: str, parameters: dict[str, Any]) -> str:
        """Start a run of a deployment, as the button in the Prefect UI does. Returns its id."""
        found = self.prefect(f"deployments/name/{name}/{name}")
        return str(self.prefect(f"deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def wait(self, run_id: str, *states: str) -> dict[str, Any]:
        """Wait until a flow run is in one of these states (its type, as COMPLETED). Return the run."""

        def there() -> dict[str, Any] | None:
            run: dict[str, Any] = self.prefect(f"flow_runs/{run_id}")
            assert run["state_type"] in states or run["state_type"] not in ("FAILED", "CRASHED"), run["state"]
            return run if run["state_type"] in states else None

        return dict(until(there, 120.0, f"run {run_id} to be {' or '.join(states)}"))

    def stop(self) -> None:
        start_stop.down(self.settings)


def served_or_ended(process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        pytest.fail(f"bellwether run ended with {process.returncode}:\n{log.read_text()[-6000:]}")
    return "Serving." in log.read_text()


HELD = ExitStack()  # the running stack, until the last test that needs it is over (conftest.py)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """Yield the stack after one whole turn, still serving."""
    with HELD:
        yield HELD.enter_context(turned(tmp_path_factory.mktemp("stack")))


@contextmanager
def turned(folder: Path) -> Iterator[Stack]:
    """Run seven services and one whole turn. At the end Ctrl-C must leave no process and no change in git."""
    os.umask(0o077)  # tests call into the home as well, and a command names every file that it finds open to others
    restrict()  # some tests move champions in this process, as a command would
    before = repository()
    running = Stack(environment(folder / "home"), folder / "run.log")
    with running.log.open("w") as output:
        process = subprocess.Popen(
            [COMMAND, "run", "--feed", "none"],  # these tests send bars themselves
            cwd=ROOT,
            env=running.env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
        )
    try:
        deadline = time.monotonic() + TURN_SECONDS
        while not served_or_ended(process, running.log):
            if time.monotonic() > deadline:
                pytest.fail(f"not serving after {TURN_SECONDS:.0f} s:\n{running.log.read_text()[-6000:]}")
            time.sleep(0.5)
        with pytest.MonkeyPatch.context() as patch:  # what MLflow's client in this process sends
            patch.setenv("MLFLOW_TRACKING_TOKEN", write_key(running.settings))
            yield running
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == 0, running.log.read_text()[-3000:]
        left = [process.cmdline() for process in processes.home_processes(running.settings)]
        assert left == [], f"still running: {left}"
        assert repository() - before == set()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        running.stop()
        running.store.close()
        shutil.rmtree(running.settings.home, ignore_errors=True)


@pytest.fixture(scope="session")
def refused(stack):
    """Return the version of the challenger that drift requested and the gate refused."""
    lines = [p for p in stack.store.promotions("validator") if p.action == "challenge" and p.verdict_passed is False]
    assert lines, "the turn made no refused challenger: these tests need one"
    return lines[-1].to_version


@pytest.fixture(scope="session")
def second(stack):
    """Return another version with a passing verdict: the first champion's bytes, registered and judged again."""
    first = stack.store.promotions("validator")[0]
    return register_again(
        stack.installation, stack.installation.tracking.version("validator", first.to_version), first.evidence
    )


def register_again(
    installation: Installation, original: Version, evidence: dict[str, Any], bundle: Path | None = None,
    digest: str | None = None, basis: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Register a version with the tags of another and a passing verdict; of its bytes, or of those in `bundle`.

    digest  of the bytes in `bundle`, where they are what is claimed; basis: what an experiment with it rests on
    """
    tags = {name: value for name, value in original.tags.items() if not name.startswith("bellwether.")}
    model = load_bundle(installation.settings.bundles / original.digest, original.digest)
    asked = example(model)
    with quiet():
        made = installation.tracking.log_candidate(
            original.family,
            bundle or installation.settings.bundles / original.digest,
            params={},
            metrics=installation.tracking.metrics(original.run_id),
            points=[],
            files=[],
            tags=tags | ({"digest": digest} if digest else {}),
            title="",
            example=(asked, answers(model, asked)),
            data=[],
        )
    checks = tuple(Check(**{k: v for k, v in check.items() if k != "state"}) for check in evidence["checks"])
    verdict = Verdict(original.family, evidence["passed"], checks, tuple(evidence["reasons"]))
    promotion.challenge(installation, made, verdict, [], "gate", basis)
    if bundle is None:
        promotion.publish(installation)
    return made.version
