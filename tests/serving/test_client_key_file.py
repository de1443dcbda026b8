"""The file of client keys: its writers, what it holds, which names and entries it takes."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from pipelines.errors import BadValues, StateError, UnknownName, WouldOverwrite
from pipelines.settings import Settings
from serving.service import client_keys
from serving.service.client_keys import add_client, registry_file, revoke_client

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def where(tmp_path):
    return Settings(_env_file=None, home=tmp_path / "home", write_key=None)


@pytest.fixture
def made(where):
    """Make a key of these scopes; return it."""
    return lambda *scopes, name="desk", days=None: add_client(where, name, scopes, NOW, days)[1]


def test_the_file_is_ours_alone_and_holds_no_key(where, made):
    key = made("decide", "bars")
    assert stat.S_IMODE(registry_file(where).stat().st_mode) == 0o600
    assert not any(key in file.read_text() for file in where.home.iterdir())
    (client,) = client_keys.client_keys(where)
    assert (client.name, client.scopes, client.created, client.ends) == ("desk", ("bars", "decide"), NOW, None)


def test_of_many_writers_at_once_none_loses_what_another_wrote(where):
    names = [f"c{i}" for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_client(where, name, ["read"], NOW), names))
        list(pool.map(lambda name: revoke_client(where, name), names[::2]))
    assert [client.name for client in client_keys.client_keys(where)] == sorted(names[1::2])
    assert sorted(os.listdir(where.home)) == [".client_keys.lock", "client_keys.json"]


def test_of_many_who_add_one_name_one_gets_a_key(where):
    def add(_):
        try:
            return add_client(where, "desk", ["read"], NOW)[1]
        except WouldOverwrite:
            return None

    with ThreadPoolExecutor(8) as pool:
        assert sum(key is not None for key in pool.map(add, range(8))) == 1


@pytest.mark.parametrize(
    "name", ["", "a/b", "../x", "a b", "Desk", "é", "a\n", "-x", "_x", ".x", "a.b", "x" * 41, "{0}", "%s", 'a"b', "a\0"]
)
def test_a_name_is_letters_digits_and_lines_or_it_is_refused(where, name):
    with pytest.raises(BadValues, match="NAME"):
        add_client(where, name, ["read"], NOW)
    assert not registry_file(where).exists()


def test_what_is_refused_names_its_field(where, made, monkeypatch):
    with pytest.raises(BadValues, match="--scope"):
        made()
    with pytest.raises(UnknownName, match="--scope all: no such scope; there are read"):
        made("all")
    for days in (0, -1, client_keys.MOST_DAYS + 1):
        with pytest.raises(BadValues, match="--days"):
            made("read", days=days)
    with pytest.raises(UnknownName, match="nobody"):
        revoke_client(where, "desk")
    monkeypatch.setattr(client_keys, "MOST_CLIENTS", 1)
    made("read")
    with pytest.raises(BadValues, match="limit"):
        made("read", name="second")


@pytest.mark.parametrize(
    "change",
    [{"name": "../x"}, {"name": "A"}, {"sha256": "00"}, {"scopes": []}, {"scopes": ["all"]}, {"scopes": "decide"},
     {"scopes": [["decide"]]}, {"ends": 5}, {"ends": "2026-01-01"}, {"created": None}, {"ends": "soon"}],
)  # fmt: skip
def test_an_entry_that_is_none_closes_the_file(where, made, change):
    made("decide")
    content = json.loads(registry_file(where).read_text())
    content["clients"][0] |= change
    registry_file(where).write_text(json.dumps(content))
    with pytest.raises(StateError, match="damaged"):
        client_keys.client_keys(where)


def test_one_key_under_two_names_closes_the_file(where, made):
    made("decide")
    content = json.loads(registry_file(where).read_text())
    content["clients"].append(content["clients"][0] | {"name": "twin"})
    registry_file(where).write_text(json.dumps(content))
    with pytest.raises(StateError, match="twice"):
        client_keys.client_keys(where)
