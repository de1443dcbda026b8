"""Who starts runs: Prefect's schedules at speed 1, the reconciler in market time at another, and nothing twice."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import numpy as np
import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from flows.support import market_runs, pacing
from flows.support.frozen import freeze, unfreeze
from flows.support.installation import Installation
from flows.support.schedules import plan
from flows.support.started_by import BY_ITSELF
from pipelines.contracts import BAR_WIDTH
from pipelines.data.timeframes import Grid
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store
from serving.state.feed_state import FeedState, write_feed_state

MARKET, WALL = datetime(2024, 6, 5, 10, 10, tzinfo=UTC), datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FOLLOW = {name for name, each in plan(load_params()).items() if each.every is not None}


class Server:
    """Hold deployments, their schedules and runs as Prefect's server does."""

    __enter__, __exit__ = (lambda self: self), (lambda *_: None)

    def __init__(self):
        self.deployments = {
            name: SimpleNamespace(
                id=uuid4(), paused=False, schedules=[SimpleNamespace(id=uuid4(), active=True) for _ in each.schedules]
            )
            for name, each in plan(load_params()).items()
        }
        self.runs, self.started, self.artifacts, self.cancelled = [], [], [], []

    def active(self):
        """Return the deployments with an active schedule."""
        return {name for name, found in self.deployments.items() if any(each.active for each in found.schedules)}

    def run_of(self, name, state, **facts):
        """Add a run of a deployment in this state."""
        made = {"auto_scheduled": False, "next_scheduled_start_time": None, "work_pool_name": None, **facts}
        self.runs.append(SimpleNamespace(
            id=uuid4(), name=name, deployment_id=self.deployments[name].id, state_type=state, **made
        ))  # fmt: skip
        return self.runs[-1]

    def read_deployment_by_name(self, name):
        try:
            return self.deployments[name.partition("/")[0]]
        except KeyError:
            raise ObjectNotFound(None) from None

    def update_deployment_schedule(self, deployment_id, schedule_id, active):
        for found in self.deployments.values():
            for each in found.schedules:
                if (found.id, each.id) == (deployment_id, schedule_id):
                    each.active = active

    def read_flow_runs(self, *, flow_run_filter, deployment_filter=None, limit):
        names = deployment_filter.name.any_ if deployment_filter else list(self.deployments)
        ids = {self.deployments[name].id for name in names if name in self.deployments}
        before = flow_run_filter.next_scheduled_start_time and flow_run_filter.next_scheduled_start_time.before_
        return [
            run for run in self.runs
            if run.deployment_id in ids and run.state_type in flow_run_filter.state.type.any_
            and (before is None or run.next_scheduled_start_time < before)
        ][:limit]  # fmt: skip

    def set_flow_run_state(self, run_id, state, force):
        self.cancelled.append(next(run for run in self.runs if run.id == run_id))

    def create_artifact(self, artifact):
        self.artifacts.append(artifact)

    def run_deployment(self, name, **facts):
        self.started.append((name.partition("/")[0], facts))


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(market_runs, "get_client", lambda **_: made)
    monkeypatch.setattr(market_runs, "run_deployment", made.run_deployment)
    return made


@pytest.fixture
def installation(tmp_path):
    """Return a home of one market that runs by its own clock and is at MARKET."""
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    found = Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    facts = {"symbol": "A", "timeframe": "1m", "grid": Grid("1m").to_dict(), "clock": "market"}
    (found.workspace / "data").mkdir(parents=True)
    (found.workspace / "data" / "manifest.json").write_text(
        json.dumps({"format": 2, "markets": {"A": facts | {"first": MARKET.isoformat(), "last": MARKET.isoformat()}}})
    )
    observe(found, MARKET)
    yield found
    store.close()


def observe(installation, closes):
    """Store a bar that closes then: market time is there now."""
    row = np.full((1, BAR_WIDTH), 100.0)
    row[0, 0] = (closes - MINUTE).timestamp()
    installation.store.add_bars(BarBatch("A", row, np.array([closes.timestamp()]), WALL))


def feed(installation, at, speed=900.0, **facts):
    """Write what a feed writes of itself at `at`."""
    write_feed_state(installation.settings.serving_dir, FeedState(1, at, "simulator", speed, **facts))


def names(server):
    return [name for name, _ in server.started]


def test_without_a_feed_prefects_own_schedules_go_on(server, installation):
    assert market_runs.poll(installation, WALL) == []
    assert server.active() == FOLLOW | {"reconcile", "verify"}
    assert pacing.describe(installation) == {"paced_by": "prefect", "speed": 0.0, "deployments": {}}


def test_at_another_speed_the_schedules_of_what_follows_the_market_are_held_and_come_back_at_speed_1(
    server, installation
):
    by_person = server.deployments["report"].schedules[0]
    by_person.active = False
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    assert server.active() == {"reconcile", "verify"}
    held = pacing.read_pacing(installation.settings).held
    assert set(held) == FOLLOW - {"report"}
    server.deployments["monitor"].schedules[0].active = True  # in the UI, or by `bellwether schedules reset`
    market_runs.poll(installation, WALL + 61 * timedelta(seconds=1))
    assert server.active() == {"reconcile", "verify"}
    feed(installation, WALL, speed=1.0)
    market_runs.poll(installation, WALL + 2 * MINUTE)
    assert server.active() == FOLLOW - {"report"} | {"reconcile", "verify"}
    assert by_person.active is False  # a person had paused it before
    assert pacing.read_pacing(installation.settings).held == {}


def test_what_is_due_in_market_time_starts_once_marked_and_shown(server, installation):
    feed(installation, WALL)
    assert market_runs.poll(installation, WALL) == []
    observe(installation, MARKET + 2 * HOUR)
    later = WALL + timedelta(seconds=8)
    feed(installation, later)
    (line,) = market_runs.poll(installation, later)
    assert line.startswith("monitor started: due 2024-06-05 12:00")
    ((name, facts),) = server.started
    assert (name, facts["tags"], facts["timeout"]) == ("monitor", [BY_ITSELF], 0)
    assert facts["idempotency_key"] == "monitor 2024-06-05T12:00:00+00:00"
    rows = {row["deployment"]: row for row in json.loads(server.artifacts[-1].data)}
    assert rows["monitor"]["next_due"] == "2024-06-05T12:30:00+00:00"
    assert rows["ingest"]["next_due"] == "2024-06-06T00:00:00+00:00"
    shown = pacing.describe(installation)
    assert (shown["paced_by"], shown["speed"]) == ("market", 900.0)
    assert (shown["deployments"]["monitor"]["missed"], shown["deployments"]["monitor"]["waiting"]) == (3, 0)
    assert market_runs.poll(installation, later + timedelta(seconds=2)) == []


def test_while_the_feed_is_dead_nothing_is_started(server, installation):
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    observe(installation, MARKET + 2 * DAY)
    assert market_runs.poll(installation, WALL + HOUR) == []  # it wrote an hour ago: dead
    feed(installation, WALL + HOUR)
    assert len(market_runs.poll(installation, WALL + HOUR)) == 4
    assert sorted(names(server)) == ["ingest", "monitor", "report", "retention"]


def test_a_feed_that_a_person_stopped_gives_the_schedules_back_and_what_passed_meanwhile_is_not_missed(
    server, installation
):
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    feed(installation, WALL + MINUTE, stopped=True)
    observe(installation, MARKET + 2 * DAY)
    assert market_runs.poll(installation, WALL + MINUTE) == []
    assert server.active() == FOLLOW | {"reconcile", "verify"}
    feed(installation, WALL + 2 * MINUTE)
    assert market_runs.poll(installation, WALL + 2 * MINUTE) == []
    assert server.active() == {"reconcile", "verify"}
    shown = pacing.describe(installation)["deployments"]
    assert {name: (one["missed"], one["waiting"]) for name, one in shown.items()} == dict.fromkeys(FOLLOW, (0, 0))


@pytest.mark.parametrize("state", [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED])
def test_a_run_that_anybody_started_holds_up_the_next_one(server, installation, state):
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    server.run_of("monitor", state)
    server.run_of("ingest", StateType.SCHEDULED, auto_scheduled=True)  # what Prefect planned ahead is no run yet
    observe(installation, MARKET + DAY)
    market_runs.poll(installation, WALL)
    assert names(server) == ["ingest", "report", "retention"]


def test_a_person_who_paused_a_deployment_or_its_schedule_keeps_it_off(server, installation):
    server.deployments["monitor"].paused = True
    server.deployments["report"].schedules[0].active = False
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    observe(installation, MARKET + DAY)
    market_runs.poll(installation, WALL)
    assert names(server) == ["ingest", "retention"]


def test_frozen_retrains_do_not_start_and_a_running_one_holds_up_what_needs_the_workspace(server, installation):
    freeze(installation.settings, "retrain", "ann", "holidays", WALL)
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    observe(installation, MARKET + 8 * DAY)
    installation.store.request_retrain("validator", "requested", MARKET, timedelta(0))
    installation.store.claim_retrain("host:1", WALL, HOUR, "validator")
    market_runs.poll(installation, WALL)
    assert sorted(names(server)) == ["monitor", "report"]
    unfreeze(installation.settings, "retrain")
    market_runs.poll(installation, WALL + timedelta(seconds=2))
    assert names(server)[2:] == ["retrain"]


def test_after_a_night_off_of_prefects_own_schedules_only_the_newest_overdue_run_starts(server, installation):
    late = [
        server.run_of("monitor", StateType.SCHEDULED, auto_scheduled=True, next_scheduled_start_time=WALL - i * HOUR)
        for i in (3, 2, 1)
    ]
    ahead = WALL + HOUR
    server.run_of("monitor", StateType.SCHEDULED, auto_scheduled=True, next_scheduled_start_time=ahead)
    server.run_of("monitor", StateType.SCHEDULED, next_scheduled_start_time=WALL - 5 * HOUR)  # a person's own
    server.run_of("verify", StateType.SCHEDULED, auto_scheduled=True, next_scheduled_start_time=WALL - HOUR)
    market_runs.tidy_before_serving(installation, WALL)
    assert server.cancelled == late[:2]
    assert pacing.describe(installation)["deployments"] == {"monitor": {"missed": 2}}


def test_a_run_whose_process_ended_with_the_flows_holds_nothing_up(server, installation, monkeypatch):
    submitting, running = (server.run_of("monitor", s) for s in (StateType.PENDING, StateType.RUNNING))
    alive, waits = server.run_of("retrain", StateType.RUNNING), server.run_of("promote", StateType.PAUSED)
    planned = server.run_of("monitor", StateType.SCHEDULED, auto_scheduled=True, next_scheduled_start_time=WALL + HOUR)
    monkeypatch.setattr(market_runs, "runs_alive", lambda: {str(alive.id)})
    market_runs.tidy_before_serving(installation, WALL)
    assert server.cancelled == [submitting, running]
    assert not {alive.id, waits.id, planned.id} & {run.id for run in server.cancelled}


def test_a_process_that_works_on_a_run_is_found():
    with subprocess.Popen(["sleep", "60"], env={"PREFECT__FLOW_RUN_ID": "0190-this-one"}) as process:
        assert "0190-this-one" in market_runs.runs_alive()
        process.kill()


def test_a_damaged_file_of_what_is_due_counts_from_now(server, installation):
    feed(installation, WALL)
    market_runs.poll(installation, WALL)
    (installation.settings.home / "learning" / "due.json").write_text("{")
    observe(installation, MARKET + DAY)
    assert market_runs.poll(installation, WALL) == []
    assert pacing.read_pacing(installation.settings).who == "market"
