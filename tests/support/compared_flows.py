"""What the flows do with experiments, called as the monitor does, on a small installation with a champion."""

import pytest

from flows import monitor
from flows import promote as promote_module
from flows.support import experiments, promotion
from support.compared_home import ComparedHome
from support.stack import quiet


@pytest.fixture
def home(tmp_path, monkeypatch, empty_registry):
    """An installation whose validator version 1 is champion."""
    monkeypatch.chdir(tmp_path)  # a registry without a server stores artifacts next to itself
    monkeypatch.setattr(promotion, "install_warm_starts", lambda installation: {})
    made = ComparedHome(tmp_path, empty_registry)
    monkeypatch.setattr(promote_module, "open_installation", lambda: made.installation)
    monkeypatch.setattr(promote_module, "promote", by_policy)  # without a server of Prefect
    made.candidate()
    with quiet():
        promotion.promote(made.installation, "validator", "1", promotion.POLICY, "passed the gate")
    made.live(0.25)
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
