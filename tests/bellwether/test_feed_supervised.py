"""The feed as the supervisor runs it: up while idle, started again when killed, and its order outlives `down`."""

import time

import psutil
import pytest
from support.small_services import free_port

from bellwether.operations import start_stop
from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order
from flows.support import processes, service_table
from pipelines.settings import Settings
from serving.state.feed_state import read_feed_state

FEED = {"feed": service_table.SERVICES["feed"]}


@pytest.fixture
def settings(tmp_path):
    """A new home; nothing of it may run at the end."""
    ports = {name: free_port() for name in ("mlflow_port", "prefect_port", "decision_port", "model_port")}
    made = Settings(home=tmp_path / "home", **ports)
    yield made
    start_stop.down(made)
    assert processes.home_processes(made) == []


def feed(settings):
    """Return the state of the feed process."""
    return processes.services(settings, FEED)["feed"]


def until(holds, seconds=60.0):
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_is_up_while_idle_starts_again_when_killed_and_its_order_outlives_everything(settings):
    write_order(settings, FeedOrder(True, "push"))
    start_stop.up(settings, only=["feed"])
    first = feed(settings)
    assert first["state"] == "up"
    until(lambda: "no data version" in (read_feed_state(settings.serving_dir).held or ""))
    psutil.Process(first["pid"]).kill()
    until(lambda: feed(settings)["state"] == "up" and feed(settings)["pid"] != first["pid"])
    start_stop.down(settings)
    assert feed(settings)["state"] == "down"
    assert read_feed_state(settings.serving_dir).stopped
    assert read_order(settings) == FeedOrder(True, "push")


def test_the_feed_is_stopped_before_the_servers_it_talks_to():
    assert "feed" in service_table.WORKERS
    assert service_table.SERVICES["feed"].port_field is None
