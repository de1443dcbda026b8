"""What time it is: each market has its clock, no caller sets it, and a machine's clock that was set is not trusted."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from support.decision_service import as_json, running_service
from support.health_page import holds
from support.service_probes import alarms, eventually, status
from support.serving_fixture import SYMBOL, on_wall_clock, slot_entry, trading_now

from flows.support.data_writer import write_snapshot
from pipelines.clock import JUMP_S, STEADY_S, Clock, ClockWatch, mode_of, mode_of_source
from pipelines.contracts import OPEN_TIME
from pipelines.data.data_version import read_manifest
from pipelines.data.quality import assess
from pipelines.data.schemas import to_frame
from pipelines.data.timeframes import Grid
from pipelines.warm_start import read_warm_start
from serving.state.symbols import clock_of

MINUTES = Grid("1m")

T0 = datetime(2026, 3, 1, tzinfo=UTC)
DAY_S = 86_400.0


# ---- whose clock it is


@pytest.mark.parametrize(
    ("manifest", "mode"),
    [
        ({"clock": "market", "source": {"source": "exchange"}}, "market"),
        ({"clock": "wall", "source": {"source": "simulator"}}, "wall"),
        ({"source": {"source": "simulator"}}, "market"),  # of release 0.5
        ({"source": {"source": "files"}}, "market"),
        ({"source": {"source": "exchange"}}, "wall"),
        ({"clock": "sundial", "source": {"source": "files"}}, "market"),
        ({"source": "simulator"}, "wall"),
        ({}, "wall"),
    ],
)
def test_the_manifest_says_which_clock_and_an_old_one_has_that_of_its_source(manifest, mode):
    assert mode_of(manifest) == mode


@pytest.mark.parametrize(("source", "mode"), [("simulator", "market"), ("files", "market"), ("exchange", "wall")])
def test_ingest_writes_the_clock_of_the_source_and_a_stated_one_stays(stand, tmp_path, source, mode):
    report = assess(to_frame(stand.base[:600], MINUTES, None), MINUTES, datetime.now(UTC))
    write_snapshot(tmp_path, SYMBOL, report, {"source": source})
    assert read_manifest(tmp_path).market()["clock"] == mode == mode_of_source(source)
    write_snapshot(tmp_path, SYMBOL, report, {"source": source}, clock="wall")
    assert read_manifest(tmp_path).market()["clock"] == "wall"


def test_a_warm_start_carries_the_clock_and_one_that_names_none_is_taken_by_the_time_of_day(stand, tmp_path):
    assert clock_of(read_warm_start(stand.stage)) == Clock("market")
    assert clock_of(read_warm_start(on_wall_clock(stand, tmp_path / "wall").stage)) == Clock("wall")
    old = clock_of(read_warm_start(on_wall_clock(stand, tmp_path / "old", None).stage))
    assert (old.mode, "names no clock" in old.why) == ("wall", True)


def test_now_is_the_feeds_position_or_the_time_of_day():
    position, wall = T0, T0 + timedelta(days=400)
    assert Clock("market").now(position, wall) == position
    assert Clock("wall").now(position, wall) == wall
    assert Clock("wall").now(wall + timedelta(seconds=3), wall) == wall + timedelta(seconds=3)  # a bar a little ahead


# ---- no caller sets it


def test_on_a_market_clock_now_moves_with_observed_bars_alone_and_data_are_never_old(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        first = client.decide()
        assert first["known_at"] == first["as_of"]
        client.observe(4)
        shown = status(client)["symbols"][SYMBOL]
        assert (shown["clock"], shown["age_bars"]) == ("market", 0.27)
        assert (datetime.fromisoformat(shown["now"]) - datetime.fromisoformat(first["as_of"])).total_seconds() == 240.0
        assert client.decide() == first
        client.observe(11)
        second = client.decide()
        assert second["known_at"] == second["as_of"] > first["as_of"]
        assert (second["tier"], status(client)["health"]) == (2, "HEALTHY")


@pytest.mark.parametrize("after_s", [1.0, 0.0, -900.0, 1e9])
def test_a_caller_cannot_lift_the_gate_on_stale_data(stand, home, tmp_path, after_s):
    """Bars of 2024 on the clock of a market that trades now: they are old, whatever instant a caller names."""
    with running_service(on_wall_clock(stand, tmp_path / "wall"), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        near = datetime.fromtimestamp(client.close() + after_s, UTC).isoformat()
        answer = client.call("/decide", {"symbol": SYMBOL, "as_of": near})
        assert (answer.status_code, "bellwether replay" in answer.json()["error"]) == (400, True)
        decision = client.decide()
        assert (decision["tier"], decision["tier_multiplier"], decision["action"]) == (4, 0.0, "NO_TRADE")
        assert "bars old, limit 2" in decision["tier_reason"]
        assert {"TIER_CLOSED", "STALE_DATA"} <= {reason.split(":")[0] for reason in decision["reasons"]}
        assert client.decide()["id"] == decision["id"]


def test_an_old_warm_start_takes_the_clock_of_the_manifest_it_was_made_from(stand, home, tmp_path):
    data = home / "workspace" / "data"
    data.mkdir(parents=True)
    data.joinpath("manifest.json").write_text(json.dumps({"symbol": SYMBOL, "source": {"source": "simulator"}}))
    with running_service(on_wall_clock(stand, tmp_path / "old", None), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        shown = status(client)["symbols"][SYMBOL]
        assert (shown["clock"], "names no clock" in shown["clock_reason"]) == ("market", True)
        assert client.decide()["tier"] == 2


# ---- a clock that was set


def watched(moves, watch=None, step_s=1.0):
    """Return the fault after each second; `moves`: second → the wall clock is set by so many seconds."""
    watch, wall, faults = watch or ClockWatch(0.0, DAY_S), DAY_S, []
    for second in range(1, 400):
        wall += step_s + moves.get(second, 0.0)
        faults.append(watch.check(float(second), wall))
    return faults


@pytest.mark.parametrize("by", [DAY_S, -DAY_S, 3600.0, -6.0, 6.0])
def test_a_clock_that_was_set_is_not_trusted_until_it_is_back(by):
    faults = watched({100: by, 130: -by})
    assert [i + 1 for i, why in enumerate(faults) if why] == list(range(100, 130))
    assert f"{by:+,.0f} s" in faults[99]
    assert "Fix the clock" in faults[99]


def test_one_that_runs_evenly_long_enough_was_set_on_purpose():
    faults = watched({100: 3600.0})
    assert [i + 1 for i, why in enumerate(faults) if why] == list(range(100, 100 + int(STEADY_S)))


def test_one_that_is_set_again_and_again_is_never_trusted():
    assert all(watched({100 + i: DAY_S for i in range(0, 300, 30)})[99:])


def test_slow_corrections_and_small_steps_are_no_jump():
    assert not any(watched(dict.fromkeys(range(1, 400), 0.0005)))
    assert not any(watched({50: JUMP_S - 1.0, 150: -(JUMP_S - 1.0)}))


def test_bars_that_close_where_time_would_be_are_evidence_against_the_clock():
    watch, faults = ClockWatch(0.0, DAY_S), []
    for second in range(1, 400):
        wall = DAY_S + second + (DAY_S if second >= 100 else 0.0)
        faults.append(watch.check(float(second), wall))
        watch.observe_bar(DAY_S + second, float(second))
    assert all(faults[99:])


@pytest.fixture
def trading(stand, home, tmp_path):
    """A market that trades now: its last minute closed a moment ago."""
    with running_service(trading_now(stand, tmp_path / "now"), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        yield client


def test_while_the_clock_is_wrong_no_bar_is_taken_and_nothing_is_opened(trading, monkeypatch):
    assert trading.observe(23).status_code == 200
    assert trading.decide()["tier"] == 2
    wrong = [0.0]
    real_check = ClockWatch.check
    monkeypatch.setattr(ClockWatch, "check", lambda self, steady, wall: real_check(self, steady, wall + wrong[0]))
    wrong[0] = DAY_S
    before = len(trading.store().bars(SYMBOL))
    answer = trading.call("/observe", {"symbol": SYMBOL, "bars": [as_json(trading.stand.live[23])]})
    assert (answer.status_code, answer.json()["kind"]) == (503, "ClockJumped")
    assert "Fix the clock" in answer.json()["error"]
    assert len(trading.store().bars(SYMBOL)) == before
    assert trading.decide()["action"] == "NO_TRADE"
    assert eventually(lambda: status(trading)["tier"] == 4)
    holds(trading, "the clock was set", "clock: clock jumped by +86,400 s")
    assert eventually(lambda: alarms(trading, "clock_jumped"))
    wrong[0] = 0.0
    assert eventually(lambda: trading.http.get("/ready").status_code == 200)
    assert eventually(lambda: all(a.cleared_at for a in alarms(trading, "clock_jumped")))


def test_a_bar_of_tomorrow_does_not_keep_the_true_feed_out(trading, monkeypatch):
    """The clock was a day ahead when the service started, which nothing can tell; then it is put right."""
    tomorrow = trading.stand.live[22].copy()
    tomorrow[OPEN_TIME] += DAY_S
    real = datetime

    class Ahead(real):
        ahead_s = DAY_S

        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + timedelta(seconds=cls.ahead_s)

    monkeypatch.setattr("serving.service.system_clock.datetime", Ahead)
    monkeypatch.setattr("serving.service.system_clock.ClockWatch.check", lambda *times: None)
    assert trading.call("/observe", {"symbol": SYMBOL, "bars": [as_json(tomorrow)]}).status_code == 200
    Ahead.ahead_s = 0.0
    decision = trading.decide()
    assert (decision["tier"], decision["action"]) == (4, "NO_TRADE")
    assert "Fix the clock" in decision["tier_reason"]
    answer = trading.observe(23)  # the feed and the clock agree
    assert (answer.status_code, answer.json()["new"]) == (200, 23), answer.text
    assert trading.store().bars(SYMBOL)[-1, OPEN_TIME] == trading.stand.live[22, OPEN_TIME]
    assert eventually(lambda: any("withdrawn" in a.detail for a in alarms(trading, "clock_jumped")))


def test_bars_ahead_of_the_clock_stay_while_only_the_clock_is_evidence_against_them(trading, monkeypatch):
    """The clock is a day behind: what is stored is right, and a bar that it holds already proves nothing."""
    assert trading.observe(23).status_code == 200
    real = datetime

    class Behind(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) - timedelta(days=1)

    monkeypatch.setattr("serving.service.system_clock.datetime", Behind)
    monkeypatch.setattr("serving.service.system_clock.ClockWatch.check", lambda *times: None)
    then = trading.stand.live[22, OPEN_TIME] - DAY_S
    (old,) = trading.stand.base[trading.stand.base[:, OPEN_TIME] == then]
    answer = trading.call("/observe", {"symbol": SYMBOL, "bars": [as_json(old)]})
    assert (answer.status_code, "comes late" in answer.json()["error"]) == (400, True)
    assert len(trading.store().bars(SYMBOL)) == 23
    assert "Fix the clock" in trading.decide()["tier_reason"]
