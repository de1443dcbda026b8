"""The automation of the drift event: renamed in place where an earlier release made it, and put back by a reset."""

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.events.schemas.automations import Automation, MetricTrigger, MetricTriggerQuery

from flows.monitor import DRIFT_EVENT
from flows.support import schedules
from flows.support.earlier_parameters import name_families
from flows.support.schedules import OLD_EVENT, OLD_TRIGGER, TRIGGER, rename_old_automations
from pipelines.settings import load_params

DEPLOYMENT, PLAN = uuid4(), schedules.plan(load_params())["retrain"]


def old_automation(**changes):
    """The automation as release 0.6.0 registered it, with these changes of a person."""
    trigger = schedules.drift_trigger()
    trigger.set_deployment_id(DEPLOYMENT)
    core = trigger.as_automation()
    core.trigger.expect = {OLD_EVENT}
    return Automation(id=uuid4(), **(core.model_dump() | {"name": OLD_TRIGGER} | changes))


class Server:
    """Hold automations as Prefect's server does, for clients of either kind."""

    def __init__(self, *automations):
        self.automations = {each.id: each for each in automations}
        self.schedules = [SimpleNamespace(id=uuid4(), schedule=s, active=True, parameters=None) for s in PLAN.schedules]

    def read_deployment_by_name(self, name):
        return SimpleNamespace(id=DEPLOYMENT, schedules=self.schedules, paused=False, parameters=PLAN.parameters)

    def read_automations_by_name(self, name):
        return [each for each in self.automations.values() if each.name == name]

    def create_automation(self, automation):
        made = Automation(id=uuid4(), **automation.model_dump())
        self.automations[made.id] = made

    def update_automation(self, automation_id, automation):
        changed = automation.model_dump(exclude_unset=True)
        assert not {"id", "owner_resource"} & changed.keys(), "the server refuses fields it does not know"
        self.automations[automation_id] = Automation(id=automation_id, **changed)

    def delete_automation(self, automation_id):
        del self.automations[automation_id]

    def create_deployment_schedules(self, deployment_id, made):
        pass

    def delete_deployment_schedule(self, deployment_id, schedule_id):
        pass

    def update_deployment(self, deployment_id, changes):
        pass


def rename(server):
    """Rename as registration does, through an asynchronous client."""

    async def read(name):
        return server.read_automations_by_name(name)

    async def update(automation_id, automation):
        server.update_automation(automation_id, automation)

    client = SimpleNamespace(read_automations_by_name=read, update_automation=update)
    asyncio.run(rename_old_automations(client))
    return list(server.automations.values())


@pytest.mark.parametrize("enabled", [True, False])
def test_an_automation_of_an_earlier_release_is_renamed_in_place_and_stays_as_a_person_left_it(enabled):
    old = old_automation(enabled=enabled, description="ours")
    (renamed,) = rename(Server(old))
    assert (renamed.id, renamed.name, renamed.enabled, renamed.description) == (old.id, TRIGGER, enabled, "ours")
    assert renamed.trigger.expect == {DRIFT_EVENT}
    assert renamed.trigger.match == old.trigger.match
    assert renamed.actions == old.actions


def test_other_events_and_other_kinds_of_trigger_that_a_person_chose_stay():
    events = old_automation()
    events.trigger.expect = {OLD_EVENT, "desk.retrain"}
    query = MetricTriggerQuery(name="duration", threshold=1, operator=">")
    metric = old_automation(trigger=MetricTrigger(posture="Metric", metric=query))
    first, second = rename(Server(events, metric))
    assert first.trigger.expect == {DRIFT_EVENT, "desk.retrain"}
    assert (second.name, second.trigger) == (TRIGGER, metric.trigger)


def test_the_text_with_families_of_an_earlier_release_becomes_a_list_wherever_the_server_holds_one():
    text = {"family": "{{ event.payload.family }}", "reason": "{{ event.payload.reason }}"}
    ours, of_a_person, of_another = old_automation(), old_automation(name="desk"), old_automation(name="other")
    ours.actions[0].parameters = text
    of_a_person.actions[0].parameters = {"family": "regime"}
    of_another.actions[0].deployment_id, of_another.actions[0].parameters = uuid4(), {"family": "regime"}
    server, changes = Server(ours, of_a_person, of_another), {}
    schedules_of = [SimpleNamespace(id="daily", parameters={"family": "pattern,regime"})]
    schedules_of += [SimpleNamespace(id="plain", parameters=None)]
    deployment = SimpleNamespace(id=DEPLOYMENT, parameters={"family": "validator", "reason": "mine"})
    deployment.schedules = schedules_of

    class Client:
        """Answer as Prefect's asynchronous client, and note what is changed."""

        async def read_automations(self):
            return list(server.automations.values())

        async def update_automation(self, automation_id, automation):
            server.update_automation(automation_id, automation)

        async def read_flow_runs(self, **_):
            waits = {"requested": {"family": "validator,regime"}, "new": {"families": ["regime"]}}
            return [SimpleNamespace(id=name, parameters=given) for name, given in waits.items()]

        async def update_flow_run(self, run_id, parameters):
            changes[run_id] = parameters

        async def update_deployment(self, deployment_id, update):
            changes[deployment_id] = update.model_dump(exclude_unset=True)["parameters"]

        async def update_deployment_schedule(self, deployment_id, schedule_id, parameters):
            changes[schedule_id] = parameters

    asyncio.run(name_families(Client(), deployment))
    assert changes == {
        DEPLOYMENT: {"families": ["validator"], "reason": "mine"},
        "daily": {"families": ["pattern", "regime"]},
        "requested": {"families": ["validator", "regime"]},
    }
    given = {each.name: each.actions[0].parameters for each in server.automations.values()}
    assert given[OLD_TRIGGER] == schedules.drift_trigger().parameters
    assert (given["desk"], given["other"]) == ({"families": ["regime"]}, {"family": "regime"})


def test_where_a_person_deleted_it_nothing_is_made():
    assert rename(Server()) == []


def test_a_reset_lists_an_automation_under_its_old_name_and_replaces_it(monkeypatch):
    server = Server(old_automation(enabled=False))
    (before,) = schedules_reset(server, monkeypatch)
    assert any(OLD_EVENT in line for line in before.differences)
    (new,) = server.automations.values()
    assert (new.name, new.enabled, new.trigger.expect) == (TRIGGER, True, {DRIFT_EVENT})
    assert schedules_reset(server, monkeypatch) == []


def schedules_reset(server, monkeypatch):
    """Run the reset of `retrain` alone against this server."""

    class Client:
        __enter__, __exit__ = (lambda _: server), (lambda *_: None)

    monkeypatch.setattr(schedules, "get_client", lambda **_: Client())
    monkeypatch.setattr(schedules, "plan", lambda params: {"retrain": PLAN})
    return schedules.reset(load_params())
