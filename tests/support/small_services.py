"""A home whose services are two small HTTP servers, under the real supervisor."""

import socket
import sys

import pytest

from bellwether.operations import start_stop
from flows.support import processes
from flows.support.service_table import Service
from pipelines.settings import Settings

KNOWN = {"alpha": Service("mlflow_port"), "beta": Service("prefect_port")}
SERVER = f'exec {sys.executable} -m http.server --bind "$BELLWETHER_HOST" '


def free_port() -> int:
    """Return a port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def home(tmp_path):
    """Settings of a new home, with a Procfile next to it; at the end nothing of it may run."""
    settings = Settings(home=tmp_path / "home", mlflow_port=free_port(), prefect_port=free_port())
    (tmp_path / "Procfile").write_text(
        f'alpha: {SERVER} "$BELLWETHER_MLFLOW_PORT"\nbeta: {SERVER} "$BELLWETHER_PREFECT_PORT"\n'
    )
    yield settings
    start_stop.down(settings)
    assert processes.home_processes(settings) == []


def start(settings, **changes):
    """Run `up` on the Procfile of the home; `known` are the services, both by default."""
    return start_stop.up(
        settings, procfile=settings.home.parent / "Procfile", known=changes.pop("known", KNOWN), **changes
    )


def states(settings):
    """Return the state of each service."""
    return {name: s["state"] for name, s in processes.services(settings, KNOWN).items()}
