"""`bellwether key`: keys of clients are made, listed and ended, and `doctor` warns of those that end."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.operations.doctor import ENDS_DAYS, keys_of_clients
from pipelines.errors import BadValues, UnknownName, WouldOverwrite
from pipelines.settings import Settings, settings
from serving.service import client_keys
from serving.service.client_keys import ClientKeys, add_client, registry_file


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BELLWETHER_WRITE_KEY", raising=False)
    settings.cache_clear()
    yield Settings(_env_file=None, home=tmp_path / "home")
    settings.cache_clear()


def key(*words, fails=None):
    """Run `bellwether key WORDS`; return what it prints, or its error if it is of the kind `fails`."""
    done = CliRunner().invoke(app, ["key", *map(str, words)])
    if fails is not None:
        assert isinstance(done.exception, fails)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_key_is_shown_once_and_works(home):
    shown, secret = key("add", "desk", "--scope", "decide", "--scope", "read", "--days", 90).splitlines()
    assert "desk may follow the stream of decisions; request decisions and predictions until" in shown
    assert ClientKeys(home).find(secret.encode()).scopes == ("read", "decide")
    assert secret not in key("list") + key("list", "--json") + registry_file(home).read_text()


def test_a_key_goes_to_a_new_file_of_ours_alone_and_is_not_shown(home, tmp_path):
    file = tmp_path / "desk.key"
    shown = key("add", "desk", "--scope", "bars", "--to", file)
    secret = file.read_text().strip()
    assert (stat.S_IMODE(file.stat().st_mode), secret in shown) == (0o600, False)
    assert ClientKeys(home).find(secret.encode()).name == "desk"
    assert json.loads(key("add", "two", "--scope", "bars", "--to", tmp_path / "2", "--json"))["file"].endswith("/2")
    assert f"--to {file}: exists" in key("add", "other", "--scope", "bars", "--to", file, fails=WouldOverwrite)
    assert file.read_text().strip() == secret
    assert "No such file" in key("add", "other", "--scope", "bars", "--to", tmp_path / "no" / "x", fails=BadValues)
    for words in (("desk", "--scope", "bars"), ("../x", "--scope", "bars"), ("other", "--scope", "all")):
        key("add", *words, "--to", tmp_path / "left", fails=Exception)
        assert not (tmp_path / "left").exists()
    assert [client.name for client in client_keys.client_keys(home)] == ["desk", "two"]


def test_the_list_shows_scopes_and_what_has_ended(home):
    assert "no client has a key" in key("list")
    assert json.loads(key("list", "--json")) == {"clients": []}
    long_ago = datetime(2026, 1, 1, tzinfo=UTC)
    add_client(home, "old", ["mlflow"], long_ago, days=1)
    made = json.loads(key("add", "desk", "--scope", "decide", "--json"))
    assert made["key"].startswith("bwc_")
    found = {client["name"]: client for client in json.loads(key("list", "--json"))["clients"]}
    assert found["old"] == {"name": "old", "state": "expired", "scopes": ["mlflow"], "created": "2026-01-01 00:00",
                            "ends": "2026-01-02 00:00"}  # fmt: skip
    assert (found["desk"]["state"], found["desk"]["ends"]) == ("valid", None)
    assert "expired" in key("list")


def test_a_revoked_key_is_gone_and_the_name_is_free(home):
    key("add", "desk", "--scope", "decide")
    assert "`bellwether key revoke desk` first" in key("add", "desk", "--scope", "bars", fails=WouldOverwrite)
    key("revoke", "desk")
    assert "nobody" in key("revoke", "desk", fails=UnknownName)
    key("add", "desk", "--scope", "bars")


def test_doctor_warns_of_keys_that_end_soon_or_have_ended(home):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert [finding.state for finding in keys_of_clients(home, now)] == ["ok"]
    for name, days in [("soon", ENDS_DAYS), ("later", ENDS_DAYS + 1), ("never", None)]:
        add_client(home, name, ["read"], now, days)
    (finding,) = keys_of_clients(home, now)
    assert (finding.name, finding.state, finding.detail) == ("key of soon", "warn", "ends at 2026-03-15 00:00 UTC")
    found = list(keys_of_clients(home, now + timedelta(days=ENDS_DAYS)))
    assert [(f.name, f.detail.split()[0]) for f in found] == [("key of later", "ends"), ("key of soon", "ended")]
    assert all("bellwether key revoke" in f.remedy for f in found)
    registry_file(home).chmod(0o644)
    (finding,) = keys_of_clients(home, now)
    assert (finding.state, f"chmod 600 {registry_file(home)}" in finding.detail) == ("fail", True)
