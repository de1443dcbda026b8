"""/ready, health and /status mean one thing each, fault by fault as docs/health.md says; a bad file changes nothing."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.decision_service import running_service
from support.health_page import TABLE, documented, holds, reported, row_of
from support.model_slots import Place, spoil_weights
from support.service_probes import alarms, eventually, next_decision, status
from support.serving_fixture import SYMBOL, make_bundle, publish, slot_entry, trading_now

from flows.support import processes
from pipelines import disk
from pipelines.clock import ClockWatch
from pipelines.errors import GoldenMismatch, StateError
from pipelines.settings import Settings
from serving.inference import generation_watcher
from serving.inference.generation import GENERATION_FILE, acknowledged, read_generation
from serving.service.health import health, waits_for_first_run
from serving.state.tiers import Freshness, State


@pytest.fixture
def client(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        yield client


# ---- the table


def test_healthy_and_before_the_first_turn(stand, home):
    with running_service(stand, home) as client:
        first = client.http.get("/ready")
        assert (first.status_code, first.json()["waiting_for_first_turn"]) == (503, True)
        holds(client, "before the first turn", "bellwether run")
        client.serve(slot_entry("1", client.champion), None)
        next_decision(client)
        holds(client, "none", "TIER_2")
        assert client.http.get("/ready").json()["waiting_for_first_turn"] is False


def test_a_tripped_breaker(client):
    client.store().trip("daily_loss", datetime.now(UTC), "lost too much")
    holds(client, "a tripped breaker", "breaker daily_loss tripped: lost too much")


def test_tier_four_tripped_by_a_person(client):
    client.store().trip("emergency", datetime.now(UTC), "drill")
    holds(client, "tier 4, tripped by a person", "TIER_4")


def test_tier_three(client):
    client.serve(None, None)
    holds(client, "tier 3, no champion, or nobody answers for a model service that is out", "TIER_3")


def test_a_tier_floor_after_a_fault(client):
    next_decision(client)
    client.store().trip("emergency", datetime.now(UTC), "drill")
    holds(client, "tier 4, tripped by a person", "TIER_4")
    client.store().reset("emergency", datetime.now(UTC), "an operator", "drill over")
    assert eventually(lambda: "good bar" in reported(client)[2])
    assert reported(client)[1] == "UNHEALTHY"  # nothing can be opened yet
    while next_decision(client)["tier"] == 4:
        pass
    holds(client, "a tier floor after a fault", "back to tier 2 after 4 good bar(s)")


def test_warm_up_after_a_gap(client):
    client.sent += 40
    client.observe(20)
    holds(client, "warm-up after a gap", "WARMING_UP")


def test_a_refused_model_next_to_the_one_that_serves(client):
    broken = make_bundle(client.home / "bundles", client.stand.columns, client.stand.rows, 0.7)
    spoil_weights(client.home / "bundles" / broken)
    client.serve(slot_entry("1", client.champion), slot_entry("2", broken, "refused"))
    holds(client, "a model was refused", "validator challenger version 2 was refused")


def test_a_disk_without_room_opens_nothing_and_still_answers(stand, home):
    with running_service(stand, home, BELLWETHER_DISK_STOP_MB=str(10**9), BELLWETHER_DISK_WARN_MB=str(10**9)) as client:
        client.serve(slot_entry("1", client.champion), None)
        decision = next_decision(client)
        assert (decision["tier"], decision["action"]) == (4, "NO_TRADE")
        assert "disk full" in decision["tier_reason"]
        holds(client, "disk under `BELLWETHER_DISK_STOP_MB`", "disk full")


def test_levels_of_a_disk(tmp_path):
    free = disk.check_space(tmp_path / "not" / "there", 0, 0).free_bytes
    assert [disk.check_space(tmp_path, *limits).level for limits in ((0, 0), (2 * free, 0), (2 * free, 2 * free))] == [
        "ok", "warn", "stop",
    ]  # fmt: skip


@pytest.fixture
def ahead(monkeypatch):
    """The time of day, moved on by hand and believed."""
    real = datetime

    class Ahead(real):
        by = timedelta(0)

        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + cls.by

    monkeypatch.setattr("serving.service.system_clock.datetime", Ahead)
    monkeypatch.setattr(ClockWatch, "check", lambda *times: None)
    return Ahead


def test_a_symbol_that_was_fed_and_is_silent_is_seen_also_after_a_restart(stand, home, tmp_path, ahead):
    made = trading_now(stand, tmp_path / "now")
    with running_service(made, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(23)
        assert client.decide()["tier"] == 2
        holds(client, "none", "TIER_2")
        assert status(client)["symbols"][SYMBOL]["last_bar_arrived"] is not None
        assert json.loads((home / "serving" / "freshness.json").read_text())["live"] == [SYMBOL]
    ahead.by = timedelta(hours=1)
    with running_service(made, home) as client:
        holds(client, "a symbol that was fed and is silent", "data stale")
        client.sent = 23
        assert client.observe(45).status_code == 200  # what was missed comes
        assert eventually(lambda: "back to tier 3" in reported(client)[2])


def test_one_that_was_never_fed_live_catches_up_without_a_fault(stand, home, tmp_path, ahead):
    ahead.by = timedelta(days=30)
    with running_service(trading_now(stand, tmp_path / "now"), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(23)
        assert reported(client)[:2] == documented("none")[:2]
        assert client.decide()["tier"] == 4  # its answer is not acted on all the same


@pytest.mark.parametrize("content", ["{", "[]", '{"live": 3}', '{"live": [], "arrived": {"a": "x"}}', "null"])
def test_freshness_that_cannot_be_read_starts_empty(tmp_path, content):
    (tmp_path / "f.json").write_text(content)
    fresh = Freshness(tmp_path / "f.json")
    assert fresh.stale_reason("A", 9.0, 2.0) is None
    fresh.stale_reason("A", 1.0, 2.0)
    fresh.save()
    assert Freshness(tmp_path / "f.json").stale_reason("A", 9.0, 2.0) is not None


def test_nothing_is_written_at_each_bar(tmp_path):
    fresh = Freshness(tmp_path / "f.json")
    fresh.stale_reason("A", 0.0, 2.0)
    fresh.record_arrival("A", 1000.0)
    assert fresh.unsaved
    fresh.save()
    fresh.record_arrival("A", 1059.0)
    assert not fresh.unsaved
    fresh.record_arrival("A", 1061.0)
    assert fresh.unsaved


OK = {"name": "store", "ok": True, "detail": "writable"}


def test_the_gravest_fault_is_the_reason():
    good, low = State(2, "validator decides"), State(3, "no champion")
    red = [{"name": "store", "ok": False, "detail": "locked"}]
    assert health(red, State(4, "x"), {"b": "y"}, {}, []).reason == "store: locked"
    assert health([OK], State(4, "x"), {"b": "y"}, {}, []).reason == "TIER_4: x"
    assert health([OK], low, {"b": "y"}, {}, []).status == "UNHEALTHY"
    assert health([OK], low, {}, {}, []).status == "DEGRADED"
    assert health([OK], good, {}, {"A": "WARMING_UP"}, ["c"]).reason == "A: WARMING_UP"
    assert health([OK], good, {}, {}, ["c"]).status == "DEGRADED"
    assert health([OK], good, {}, {}, []).status == "HEALTHY"
    lacking = [OK, {"name": "warm start", "ok": False, "detail": ""}]
    assert [waits_for_first_run(lacking, 0, []), waits_for_first_run(lacking, 3, [])] == [True, False]
    assert [waits_for_first_run(lacking + red, 0, []), waits_for_first_run(lacking, 0, ["bad file"])] == [
        False,
        False,
    ]


# ---- the generation file


@pytest.fixture
def place(home, stand):
    made = Place(home, stand)
    made.warm = publish(stand, home)
    made.serve(slot_entry("1", made.first))
    made.slots.refresh()
    return made


def changed(content, path, value):
    *way, last = path
    at = content
    for name in way:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value


ARM = ("families", "validator", "champion")
WARM = ("warm_starts", "SIM/USDT")
BAD = {
    "no warm starts": (("warm_starts",), None), "no generation": (("generation",), None),
    "no families": (("families",), None), "no digest": ((*ARM, "digest"), None),
    "no version": ((*ARM, "version"), None),
    "a generation in words": (("generation",), "7"), "true": (("generation",), True), "zero": (("generation",), 0),
    "half": (("generation",), 7.5), "a list of families": (("families",), []), "an arm of words": (ARM, "validator"),
    "an arm no list": (ARM, [1]), "another word": (("colour",), "red"),
    "another arm": (("families", "validator", "third"), 1),
    "an unknown family": (("families", "oracle"), {"champion": None, "challenger": None}),
    "a short digest": ((*ARM, "digest"), "abc"), "a path as digest": ((*ARM, "digest"), "../../etc"),
    "capitals": ((*ARM, "digest"), "A" * 64), "a digest and a line": ((*ARM, "digest"), "a" * 64 + "\n"),
    "a version of numbers": ((*ARM, "version"), 9), "an empty version": ((*ARM, "version"), ""),
    "no moment": (("written_at",), "yesterday"), "a naive moment": (("written_at",), "2024-01-01T00:00:00"),
    "a warm start of words": (WARM, "newest"), "an empty warm start": (WARM, {}), "a list": (("warm_starts",), []),
    "a path outside": ((*WARM, "path"), "/etc"), "a path that climbs": ((*WARM, "path"), "warm/../../.."),
    "a digest that is none": ((*WARM, "digest"), "x"), "no digest of it": ((*WARM, "digest"), None),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_not_exactly_one_is_refused_whole_and_the_old_one_is_served(place, name):
    good = {"families": {"validator": {"champion": slot_entry("2", place.second), "challenger": None}}}
    content = good | {
        "generation": 7,
        "written_at": "2024-01-01T00:00:00+00:00",
        "warm_starts": {"SIM/USDT": dict(place.warm)},
    }
    changed(content, *BAD[name])
    refused(place, json.dumps(content))


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "7", '"x"', "[" * 100_000, '{"generation": NaN}', "\x00\x01", '{"generation": 1, "generation": 2}',
        " " * (1 << 20) + "{}",
    ],
)  # fmt: skip
def test_what_is_not_our_json_is_refused_whole(place, text):
    refused(place, text)


def refused(place, text):
    file = place.serving / GENERATION_FILE
    file.write_text(text)
    for _ in range(3):
        assert place.slots.refresh() is False
    assert (place.champion().version, place.slots.snapshot.generation) == ("1", 1)
    assert acknowledged(place.serving) == {os.getpid(): 1}
    assert [kind for kind, *_ in place.alarms] == ["generation_refused"]
    assert "bellwether promote" in place.slots.refusal
    with pytest.raises(StateError, match="is not a generation file"):
        read_generation(place.serving)
    assert place.serve(slot_entry("2", place.second)) > 1  # a promotion writes it again
    assert place.slots.refresh() is True
    assert (place.champion().version, place.slots.refusal) == ("2", None)


def test_the_whole_file_of_a_release_is_taken(place):
    families = {name: {"champion": None, "challenger": None} for name in ("regime", "pattern", "predictor")}
    families["validator"] = {"champion": slot_entry("2", place.second) | {"promotion": 4}, "challenger": None}
    content = {"generation": 9, "written_at": "2024-01-01T00:00:00+00:00", "families": families}
    (place.serving / GENERATION_FILE).write_text(json.dumps(content | {"warm_starts": {"SIM/USDT": place.warm}}))
    assert place.slots.refresh() is True


def test_a_file_up_to_release_0_10_names_one_warm_start_whose_symbol_it_takes_from_it(place):
    content = {"generation": 9, "written_at": "2024-01-01T00:00:00+00:00", "families": {}}
    (place.serving / GENERATION_FILE).write_text(json.dumps(content | {"warm_start": place.warm}))
    assert read_generation(place.serving)["warm_starts"] == {"SIM/USDT": place.warm}
    assert place.slots.refresh() is True
    assert place.slots.snapshot.warm_starts == {"SIM/USDT": place.warm}
    (place.serving / GENERATION_FILE).write_text(json.dumps(content | {"warm_start": None}))
    assert read_generation(place.serving)["warm_starts"] == {}


def test_a_refused_file_is_reported_and_what_was_served_before_decides(client):
    (client.home / "serving" / GENERATION_FILE).write_text('{"generation": 9, "families": {}}')
    holds(client, "the generation file was refused", "is not a generation file")
    assert next_decision(client)["tier"] == 2
    assert eventually(lambda: alarms(client, "generation_refused"))
    (client.home / "serving" / GENERATION_FILE).unlink()
    client.serve(slot_entry("1", client.champion), None)
    holds(client, "none", "TIER_2")


# ---- polls


@pytest.mark.parametrize(
    "fault", [KeyError("warm_start"), OSError(5, "Input/output error"), RuntimeError(""), MemoryError()]
)
def test_a_poll_that_fails_is_reported_and_the_next_one_goes_on(client, monkeypatch, fault):
    from serving.inference.model_slots import ModelSlots

    def broken(self):
        raise fault

    monkeypatch.setattr(ModelSlots, "pending", broken)
    holds(client, "a poll fails", f"generation watcher: {type(fault).__name__}")
    assert eventually(lambda: [a for a in alarms(client, "poll_failed") if not a.cleared_at])
    assert client.call("/observe", {"symbol": SYMBOL, "bars": client.bars(15)}).status_code == 200
    monkeypatch.undo()
    holds(client, "none", "TIER_2")
    assert eventually(lambda: all(a.cleared_at for a in alarms(client, "poll_failed")))
    client.serve(slot_entry("2", client.challenger), None)


# ---- the command line


def test_status_shows_health_and_its_reason_first_and_no_service_is_unhealthy(tmp_path, monkeypatch, capsys):
    from bellwether.cli.services import show_status
    from bellwether.operations import status

    monkeypatch.setattr(status, "settings", lambda: Settings(home=tmp_path, decision_port=9))
    found = status.decision_service_health()
    assert (found["health"], "Start it with `bellwether up`" in found["health_reason"]) == ("UNHEALTHY", True)
    assert row_of("the process is gone") == [
        "none", "none", found["health"], "`does not answer`, from `bellwether status`", "starts it",
    ]  # fmt: skip
    assert "does not answer" in found["health_reason"]
    assert processes.services(Settings(home=tmp_path, decision_port=9))["decision"]["state"] == "down"
    shown = {"families": {}, "services": {}, "tier": 2, "data_hash": "d", "alarms": []}
    show_status(shown | found)
    assert capsys.readouterr().out.startswith("UNHEALTHY the decision service does not answer")


def test_without_live_state_because_its_warm_start_was_refused_no_symbol_is_called_unknown(stand, home):
    with running_service(stand, home) as client:
        for file in (home / "serving" / "warm").rglob("*.npy"):
            file.write_bytes(file.read_bytes()[:-1] + b"!")
        client.serve(slot_entry("1", client.champion), None)
        holds(client, "the warm start was refused and nothing is live", "was refused")
        for path, body in (("/decide", {"symbol": SYMBOL}), ("/observe", {"symbol": SYMBOL, "bars": client.bars(1)})):
            answer = client.call(path, body)
            assert (answer.status_code, "was refused" in answer.json()["error"]) == (409, True), answer.text


def test_a_loaded_model_that_fails_its_golden_rows_is_reported(client, monkeypatch):
    def differs(model):
        raise GoldenMismatch("golden rows differ by 0.5")

    monkeypatch.setattr(generation_watcher, "check_golden", differs)
    holds(client, "a loaded model fails its golden rows", "golden:validator.champion")
    monkeypatch.undo()
    holds(client, "none", "validator champion decides")


def test_every_row_of_the_page_has_a_test():
    rows = [line.strip("|").split("|")[0].strip() for line in TABLE.splitlines() if line.startswith("| ")]
    faults = rows[rows.index("none") :]
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert len(faults) == 19
    assert [fault for fault in faults if f'"{fault}"' not in tests] == []
