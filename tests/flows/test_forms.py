"""What a person fills in to start a flow: choices where there are some, and a line on every field."""

import pytest

from flows.deployments import DEPLOYMENTS, deployments
from flows.support import symbol_choices
from flows.support.earlier_parameters import TEMPLATE, with_families
from flows.support.symbol_choices import DEPLOYMENTS as WITH_SYMBOL
from flows.support.symbol_choices import with_symbols
from pipelines.families import FAMILIES
from pipelines.settings import Settings

SETTINGS = Settings(_env_file=None)
FORMS = {made.name: made._parameter_openapi_schema.model_dump(exclude_unset=True) for made in deployments(SETTINGS)}


def fields(form):
    """Yield (name, schema) of every field of a form, also those of the objects in it."""
    objects = {"": form, **form.get("definitions", {})}
    for name, each in objects.items():
        for field, schema in each.get("properties", {}).items():
            yield f"{name}.{field}", schema


@pytest.mark.parametrize("name", FORMS)
def test_every_field_says_what_it_is_for(name):
    lacking = [field for field, schema in fields(FORMS[name]) if len(schema.get("description", "")) < 10]
    assert lacking == []


@pytest.mark.parametrize("name", FORMS)
def test_a_family_is_picked_from_the_families(name):
    for field, schema in FORMS[name]["properties"].items():
        if field == "family":
            assert schema["enum"] == list(FAMILIES)
        if field == "families":
            (listed,) = [kind for kind in schema.get("anyOf", [schema]) if kind["type"] == "array"]
            assert listed["items"]["enum"] == list(FAMILIES)


def test_where_there_is_a_symbol_it_is_picked_from_the_universe():
    assert {name for name, form in FORMS.items() if "symbol" in form["properties"]} == set(WITH_SYMBOL)
    form = FORMS["monitor"]
    offered = with_symbols(form, ["BTC/USDT", "ETH/USDT"])["properties"]["symbol"]
    assert offered["anyOf"] == [{"type": "string", "enum": ["BTC/USDT", "ETH/USDT"]}, {"type": "null"}]
    assert {**offered, "anyOf": None} == {**form["properties"]["symbol"], "anyOf": None}
    required = {"properties": {"symbol": {"type": "string", "title": "symbol"}}}
    assert with_symbols(required, ["A/B"])["properties"]["symbol"] == {
        "type": "string", "title": "symbol", "enum": ["A/B"],
    }  # fmt: skip


def test_every_run_is_named_for_what_it_does():
    assert [flow.name for flow, _ in DEPLOYMENTS if flow.flow_run_name is None] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"family": "validator, regime", "reason": "a"}, {"families": ["validator", "regime"], "reason": "a"}),
        ({"family": "{{event.payload.family}}"}, {"families": TEMPLATE}),
        ({"family": "regime", "families": ["validator"]}, {"families": ["validator"]}),
        ({"families": ["validator"], "force": True}, {"families": ["validator"], "force": True}),
        ({}, {}),
    ],
)
def test_a_text_with_families_of_an_earlier_release_becomes_a_list(before, after):
    assert with_families(before) == after


def test_the_server_is_asked_when_the_universe_changes_until_it_knows_all_and_else_once_a_minute(monkeypatch):
    present, complete, asked, clock = ("A/USDT",), True, [], [0.0]
    monkeypatch.setattr(symbol_choices.universe, "symbols", lambda installation: present)
    monkeypatch.setattr(symbol_choices.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(symbol_choices, "offer_symbols", lambda installation: asked.append(clock[0]) or complete)
    forms = symbol_choices.SymbolForms(None)

    def asked_at(*seconds):
        asked.clear()
        for clock[0] in seconds:
            forms.follow()
        return asked

    assert asked_at(0.0, 10.0, 20.0) == [0.0]
    present, complete = ("A/USDT", "B/USDT"), False  # a deployment is not registered yet
    assert asked_at(30.0, 40.0) == [30.0, 40.0]
    complete = True
    assert asked_at(50.0, 60.0, 110.0, 111.0) == [50.0, 111.0]
