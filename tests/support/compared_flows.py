"""What the flows do with experiments, called as the monitor does, on a small installation with a champion."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from flows import monitor
from flows import promote as promote_module
from flows.support import experiments, promotion
from support.compared_home import ComparedHome
from support.stack import quiet


@pytest.fixture(scope="session")
def filled_home(tmp_path_factory, empty_registry):
    """The folder of a home that the workers of a session share: copy it. Its artifacts stay where they are."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in that of the session
        base = base.parent
    folder, before = base / "filled-home", Path.cwd()
    with (base / "filled-home.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            os.chdir(folder)  # a registry without a server stores artifacts next to itself
            patch.setattr(promotion, "install_warm_starts", lambda installation: {})
            made = ComparedHome(folder, empty_registry)
            made.make()
            made.store.close()
            os.chdir(before)
            (folder / "ready").touch()
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch, filled_home):
    """An installation whose validator version 1 is champion."""
    shutil.copytree(filled_home, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(promotion, "install_warm_starts", lambda installation: {})
    made = ComparedHome(tmp_path, filled_home / "mlflow.db")
    made.go_on()
    monkeypatch.setattr(promote_module, "open_installation", lambda: made.installation)
    monkeypatch.setattr(promote_module, "promote", by_policy)  # without a server of Prefect
    yield made
    made.store.close()


def by_policy(family, version, reason):
    promotion.promote(promote_module.open_installation(), family, version, promotion.POLICY, reason)


def propose(home, version):
    with quiet():
        promote_module.propose("validator", version, "passed the gate")


def advance(home):
    """Do what the monitor does for a family."""
    lines = experiments.advance(home.installation, "validator")
    with quiet():
        promotion.publish(home.installation)
        lines += monitor.guard(home.installation, "validator")
        promote_module.promote_winner(home.installation, "validator")
        promote_module.begin_queued(home.installation, "validator")
    return lines


def set_rules(home, **changes):
    """Change parameters of experiments."""
    rules = home.installation.params.experiment.model_copy(update=changes)
    home.installation.params = home.installation.params.model_copy(update={"experiment": rules})


def champion(home):
    return home.store.slots("validator").champion.to_version


def challenger(home):
    found = home.store.slots("validator").challenger
    return found and found.to_version
