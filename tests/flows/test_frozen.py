"""Frozen learning: nothing starts by itself, a person may, and who froze it since when is known."""

import os
from datetime import UTC, datetime
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml

from flows import promote as promote_module
from flows import reconciler
from flows import retrain as retrain_module
from flows.support import frozen, started_by
from flows.support.installation import Installation
from pipelines.errors import UnknownName, UnreadableFile
from pipelines.settings import ROOT, Settings, load_params
from pipelines.store import Store

AT = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path):
    """Return the settings of a home with a params.yaml of its own."""
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text())
    return Settings(home=tmp_path / "home", store_url="", params_file=file)


@pytest.fixture
def installation(home):
    home.home.mkdir()
    store = Store.open(f"sqlite:///{home.home / 'store.db'}")
    yield Installation(home, load_params(home.params_file), store)
    store.close()


def switch(home, section, enabled):
    """Set `enabled` of a section of params.yaml, as an editor does; return when it was written."""
    content = yaml.safe_load(home.params_file.read_text())
    content[section]["enabled"] = enabled
    home.params_file.write_text(yaml.safe_dump(content))
    return datetime.fromtimestamp(home.params_file.stat().st_mtime, UTC).isoformat(timespec="seconds")


def test_nothing_is_frozen_by_default(home):
    assert frozen.freezes(home) == []


@pytest.mark.parametrize("what", frozen.KINDS)
def test_a_flag_of_params_is_a_freeze_since_the_file_was_written_and_ends_with_it(home, what):
    written = switch(home, what, False)
    first = frozen.frozen(home, what)
    assert (first.since, first.how, first.what) == (written, "params.yaml", what)
    assert first.by == frozen._owner(os.getuid())
    later = home.params_file.stat().st_mtime + 3600
    os.utime(home.params_file, (later, later))  # another line of it is edited
    assert frozen.frozen(home, what) == first
    assert f"{what}.enabled is false in params.yaml" in first.describe()
    switch(home, what, True)
    assert frozen.freezes(home) == []


def test_a_freeze_by_command_names_who_when_and_why_until_it_is_ended(home):
    made = frozen.freeze(home, "promotion", "ann", "the audit of November", AT)
    assert (made.by, made.since, made.reason) == ("ann", AT.isoformat(), "the audit of November")
    assert frozen.freeze(home, "promotion", "bob", "too", AT) == made  # the first stays
    assert frozen.freezes(home) == [made]
    assert frozen.frozen(home, "retrain") is None
    assert frozen.unfreeze(home, "promotion") == made
    assert frozen.unfreeze(home, "promotion") is None
    assert frozen.freezes(home) == []


def test_what_cannot_be_frozen_and_a_damaged_file_are_refused(home):
    with pytest.raises(UnknownName, match="retrain, promotion"):
        frozen.freeze(home, "monitor", "ann", "", AT)
    frozen.freeze(home, "retrain", "ann", "x", AT)
    (home.home / "learning" / "frozen.json").write_text("{")
    with pytest.raises(UnreadableFile, match="freeze again"):
        frozen.freezes(home)


def test_a_frozen_retrain_does_not_start_by_itself_and_does_for_a_person(installation, monkeypatch):
    switch(installation.settings, "retrain", False)
    claimed = []

    class Stop(Exception):
        """End the flow once it has begun to work."""

    def claim(*_):
        claimed.append(1)
        raise Stop

    monkeypatch.setattr(retrain_module, "open_installation", lambda: installation)
    monkeypatch.setattr(retrain_module, "claim", claim)
    monkeypatch.setattr(retrain_module, "report_progress", print)
    monkeypatch.setattr(retrain_module, "started_by_itself", lambda: True)
    assert retrain_module.retrain.fn(["validator"], "drift: score 9") == {}
    assert claimed == []
    monkeypatch.setattr(retrain_module, "started_by_itself", lambda: False)
    with pytest.raises(Stop):
        retrain_module.retrain.fn(["validator"], "requested by a person")


def test_a_frozen_promotion_waits_for_a_person_whose_own_promotion_works(installation, monkeypatch, capsys):
    promoted = []
    monkeypatch.setattr(promote_module, "open_installation", lambda: installation)
    monkeypatch.setattr(promote_module, "report_progress", print)
    monkeypatch.setattr(promote_module, "promote", lambda *given, **_: promoted.append(given))
    promote_module.propose("validator", "3", "passed the gate")
    assert promoted == [("validator", "3")]
    switch(installation.settings, "promotion", False)
    promote_module.propose("validator", "4", "passed the gate")
    assert promoted == [("validator", "3")]
    assert "`bellwether promote validator 4`" in capsys.readouterr().out


def test_a_retrain_whose_worker_died_is_not_started_again_while_frozen(installation, monkeypatch):
    gone = f"{reconciler.is_gone.__module__}:1"  # a holder elsewhere whose lease has ended
    request = installation.store.request_retrain("validator", "drift", AT, retrain_module.timedelta(0))
    installation.store.claim_retrain(gone, AT, retrain_module.timedelta(0), "validator")
    frozen.freeze(installation.settings, "retrain", "ann", "holidays", AT)
    (line,) = reconciler.recover_dead_retrains(installation, {})
    assert "frozen by ann" in line
    (ended,) = installation.store.retrain_requests("validator")
    assert (ended.id, ended.state) == (request.id, "failed")


@pytest.mark.parametrize(
    ("facts", "by_itself"),
    [
        ({}, False),
        ({"created_by": SimpleNamespace(type="AUTOMATION")}, True),
        ({"auto_scheduled": True}, True),
        ({"tags": ["bellwether", started_by.BY_ITSELF]}, True),
        ({"created_by": SimpleNamespace(type="USER")}, False),
    ],
)
def test_a_schedule_an_automation_and_the_reconciler_are_nobody(monkeypatch, facts, by_itself):
    run = SimpleNamespace(**{"auto_scheduled": False, "tags": ["bellwether"], "created_by": None, **facts})

    class Client:
        __enter__, __exit__ = (lambda self: self), (lambda *_: None)

        def read_flow_run(self, run_id):
            return run

    monkeypatch.setattr(started_by, "get_client", lambda **_: Client())
    monkeypatch.setattr(started_by, "flow_run", SimpleNamespace(id=None))
    assert started_by.started_by_itself() is False  # outside of a run
    monkeypatch.setattr(started_by, "flow_run", SimpleNamespace(id=str(uuid4())))
    assert started_by.started_by_itself() is by_itself
