"""Seven breakers, each driven into its condition through the real service: tripped, durable, reset by a person."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf, nan

import numpy as np
import pytest
import yaml
from support.decision_service import Client, running_service
from support.records import DECISION
from support.service_probes import alarms, bar_with_event, eventually, next_decision, status
from support.serving_fixture import HISTORY, SYMBOL, make_bundle, on_wall_clock, slot_entry

from bellwether.operations.breakers import reset
from benchmarks.fixture import serve_arms
from pipelines.context_layout import TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, CLOSE, HIGH, OPEN_TIME, Books, Estimate, History
from pipelines.data.alignment import align
from pipelines.data.calendars import Calendar
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES
from pipelines.params import BreakerParams
from pipelines.settings import ROOT, Settings, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.store import DecisionRecord, Fill, Store
from pipelines.warm_start import read_warm_start, write_warm_start
from serving.risk.breaker_monitor import BreakerMonitor, bar_inputs, fill_inputs, outage_inputs
from serving.risk.breakers import BREAKERS, BreakerInputs, triggered
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS = load_params()
LIMITS, RISK = PARAMS.breakers, PARAMS.risk
AT = datetime(2024, 1, 8, tzinfo=UTC)  # the day before the fixture's market goes live
LIVE = datetime(2024, 1, 9, 9, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def client(stand, home):
    trades(home)
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)  # to the close of a decision bar
        yield client


def trades(home, n=30):
    """Decisions t0, t1, … that were emitted before the service starts: 10 % of the equity each, bought at 100."""
    store = Store.open(f"sqlite:///{home / 'store.db'}")
    store.add_decisions([
        DecisionRecord(replace(DECISION, id=f"t{i}", action="BUY", direction=1, size=0.1, entry=100.0, event="fvg",
                               as_of=AT + i * timedelta(minutes=15)), b"", b"")
        for i in range(n)
    ])  # fmt: skip
    store.close()


def lose(client, id, fraction, at=LIVE):
    """The trade ends with a loss of this fraction of the equity."""
    bps = -fraction / 0.1 * 1e4
    outcome = {"decision_id": id, "resolved_at": at.isoformat(), "label": 0, "barrier": "stop",
               "gross_bps": bps + 5.0, "net_bps": bps, "cost_bps": 5.0}  # fmt: skip
    assert client.call("/outcome", outcome).status_code == 200


def fill(client, i, **changes):
    body = {"id": f"f{i}", "decision_id": f"t{i % 30}", "at": LIVE.isoformat(), "status": "filled", "price": 100.0}
    return client.call("/fill", body | changes)


def spiked(client, times=1.1):
    """A whole decision bar as JSON, of which one minute reached far up."""
    bars = client.bars(15)
    bars[7]["high"] *= times
    return {"symbol": SYMBOL, "bars": bars}


def spike(client):
    assert client.call("/observe", spiked(client)).status_code == 200


def tripped(client):
    return status(client)["breakers"]


def released(client, name):
    """A person resets it; the service has seen that."""
    reset(client.store(), name, datetime.now(UTC), "ann", "checked it")
    return eventually(lambda: name not in tripped(client))


def stays(client, name):
    """The breaker refuses and is durable, also three quiet bars later, with an alarm."""
    decision = client.decide()
    assert (decision["breakers"], decision["action"]) == ([name], "NO_TRADE")
    assert any(reason.startswith("BREAKER_LATCHED") for reason in decision["reasons"])
    (trip,) = client.store().breaker_trips()
    assert trip.name == name
    assert [next_decision(client)["breakers"] for _ in range(3)] == [[name]] * 3
    assert tripped(client) == [name]
    assert eventually(lambda: [a.detail for a in alarms(client, "breaker_tripped")] == [f"{name}: {trip.reason}"])
    return trip.reason


# ---- the conditions by themselves


def judged(**seen):
    return set(triggered(BreakerInputs("x", **seen), PARAMS))


GONE = Estimate(-10.0, -15.0, -5.0, LIMITS.trades)


@pytest.mark.parametrize(
    ("name", "at", "under"),
    [
        ("daily_loss", {"daily_pnl": -RISK.max_daily_loss}, {"daily_pnl": -RISK.max_daily_loss + 1e-9}),
        ("drawdown", {"drawdown": RISK.max_drawdown}, {"drawdown": RISK.max_drawdown - 1e-9}),
        ("volatility_spike", {"true_range": LIMITS.spike_atr}, {"true_range": LIMITS.spike_atr - 1e-9}),
        ("liquidity", {"spread_bps": LIMITS.spread_multiple, "usual_spread_bps": 1.0},
         {"spread_bps": LIMITS.spread_multiple - 1e-9, "usual_spread_bps": 1.0}),
        ("liquidity", {"depth": LIMITS.depth_share, "usual_depth": 1.0},
         {"depth": LIMITS.depth_share + 1e-9, "usual_depth": 1.0}),
        ("stale_data", {"missing_bars": LIMITS.stale_bars + 1.0}, {"missing_bars": float(LIMITS.stale_bars)}),
        ("model", {"faults": float(LIMITS.fault_multiple * PARAMS.tiers.faults_in_row)},
         {"faults": LIMITS.fault_multiple * PARAMS.tiers.faults_in_row - 1.0}),
        ("model", {"loss_drift": True, "traded": GONE}, {"loss_drift": False, "traded": GONE}),
        ("model", {"loss_drift": True, "traded": GONE}, {"loss_drift": True, "traded": replace(GONE, high=0.1)}),
        ("model", {"loss_drift": True, "traded": GONE}, {"loss_drift": True, "traded": replace(GONE, n=GONE.n - 1)}),
        ("execution", {"rejected": float(LIMITS.max_rejected), "fills": 9.0},
         {"rejected": LIMITS.max_rejected - 1.0, "fills": 9.0}),
        ("execution", {"slippage_bps": LIMITS.max_slippage_bps}, {"slippage_bps": LIMITS.max_slippage_bps - 1e-9}),
        ("account_mismatch", {"mismatch": "a fill differs"}, {"mismatch": None}),
    ],
)  # fmt: skip
def test_each_trips_at_its_limit_and_no_other_with_it(name, at, under):
    assert judged(**at) == {name}
    assert judged(**under) == set()


def test_a_spread_that_costs_no_more_than_assumed_is_no_lack_of_liquidity():
    assumed = 2 * PARAMS.costs.half_spread_bps
    assert judged(spread_bps=assumed, usual_spread_bps=0.01) == set()
    assert judged(spread_bps=assumed + 0.01, usual_spread_bps=0.01) == {"liquidity"}


def test_an_unknown_input_trips_nothing():
    assert judged() == set()
    assert len(BREAKERS) == 8


def test_a_reason_names_the_subject_the_value_and_the_limit():
    (why,) = triggered(BreakerInputs("BTC/USDT, bar closed 2024-03-05 19:15 UTC", true_range=12.34), PARAMS).values()
    assert why.startswith("BTC/USDT, bar closed 2024-03-05 19:15 UTC: true range 12.3 times")
    assert why.endswith(f"limit {LIMITS.spike_atr:g}")


# ---- inputs from a bar, an outage, fills


def walked(stand, *groups):
    symbol = Symbol(read_warm_start(stand.stage))
    for rows in groups:
        symbol.advance(rows)
    return symbol


def test_a_bar_is_measured_against_the_atr_before_it_never_with_itself(stand):
    rows = stand.live[:23].copy()
    symbol = walked(stand, rows[:8])
    before = symbol.closed
    rows[10, HIGH] *= 1.1
    symbol.advance(rows[8:])
    high, low = rows[8:, HIGH].max(), min(rows[8:, 3].min(), before.bar[CLOSE])
    reach = before.features[FEATURES.index["atr_14"]] * before.bar[CLOSE]
    assert bar_inputs(symbol, 0, LIMITS).true_range == pytest.approx((high - low) / reach)


def test_the_way_across_a_gap_belongs_to_no_bar(stand):
    rows = stand.live[8:53].copy()
    rows[30:, 1:5] *= 1.2  # the market opens elsewhere after two missing bars
    symbol = walked(stand, stand.live[:8], rows[30:])
    seen = bar_inputs(symbol, 0, LIMITS)
    assert seen.true_range < 4.0
    assert np.isnan([seen.spread_bps, seen.depth]).all()


def test_usual_spread_needs_as_many_recorded_books_as_the_settings_say(stand):
    symbol = walked(stand, stand.live[:8])
    symbol.history.features[-31:, FEATURES.index["spread"]] = 1e-4  # 30 books before the newest
    for least, known in ((30, True), (31, False)):
        seen = bar_inputs(symbol, 0, LIMITS.model_copy(update={"min_books": least}))
        assert np.isfinite([seen.spread_bps, seen.usual_spread_bps]).all() == known
    with pytest.raises(ValueError, match="min_books 97 can never"):
        BreakerParams(**{**LIMITS.model_dump(), "min_books": 97})


def test_bars_are_not_missed_while_the_market_is_regularly_closed(stand):
    symbol = walked(stand, stand.live[:8])
    later = datetime.fromtimestamp(symbol.closed.close_time + 900.0 * 40 + 1.0, UTC)
    assert outage_inputs(symbol, later).missing_bars == 40.0
    assert f"{later:%a %H:%M}" == "Tue 18:15"
    closed_at_ten = Calendar.from_dict(
        {"name": "t", "zone": "UTC", "day_starts": "00:00", "week": ["Mon 00:00-Tue 10:45", "Tue 19:00-Mon 00:00"]}
    )
    symbol.grid = Grid("15m", closed_at_ten)
    assert outage_inputs(symbol, later).missing_bars == 10.0


def test_slippage_needs_a_whole_window_and_rejects_do_not():
    fills = [Fill(f"f{i}", "t", AT, AT, "filled", 101.0, 100.0) for i in range(3)]
    fills.append(Fill("f3", "t", AT, AT, "rejected", None, None, "margin"))
    assert np.isnan(fill_inputs(fills, 5).slippage_bps)
    seen = fill_inputs(fills, 4)
    assert (seen.slippage_bps, seen.rejected, seen.fills) == (100.0, 1.0, 4.0)
    assert seen.about.startswith("orders to fill f3 at 2024-01-08 00:00:00 UTC, last reason 'margin'")
    assert fill_inputs([], 4) == BreakerInputs()


# ---- through the service


def test_a_bar_out_of_all_proportion_trips_and_stays_when_the_market_is_calm_again(client):
    spike(client)
    assert "true range" in stays(client, "volatility_spike")
    with pytest.raises(Exception, match="Add --reason"):
        reset(client.store(), "volatility_spike", datetime.now(UTC), "ann", " ")
    assert released(client, "volatility_spike")
    assert next_decision(client)["breakers"] == []
    (line,) = client.store().breaker_trips(tripped_only=False)
    assert (line.reset_by, line.reset_reason) == ("ann", "checked it")
    assert all(alarm.cleared_at for alarm in alarms(client, "breaker_tripped"))


def test_every_bar_of_a_request_is_evaluated_and_not_the_last_alone(client):
    body = spiked(client)
    body["bars"] += client.bars(15)
    client.call("/observe", body)
    assert client.decide()["breakers"] == ["volatility_spike"]


@pytest.fixture
def booked(stand, home, tmp_path):
    """A service whose history holds a book a bar, half a basis point wide and 20 units deep."""
    history = stand.base[:HISTORY]
    closed = resample(history, MINUTES, QUARTERS)
    known = closed[:, OPEN_TIME] + 890.0
    books = Books(known, np.stack([levels(bar[CLOSE]) for bar in closed]), np.full((len(known), TAPE_WIDTH), nan))
    read, context = align(closed[:, OPEN_TIME], QUARTERS, books, None)
    feature_state, signal_state = FEATURES.fresh(), SIGNALS.fresh()
    features = FEATURES.run(closed, read, context, state=feature_state)
    signals = SIGNALS.run(closed, read, context, state=signal_state)
    write_warm_start(
        tmp_path / "stage", symbol=SYMBOL, base_grid=MINUTES, grid=QUARTERS, feature_state=feature_state,
        signal_state=signal_state, base=history, history=History(closed, features, signals, read, context),
        category_scores=CategoryScores.fit(signals), clock="market", books=books,
    )  # fmt: skip
    with running_service(replace(stand, stage=tmp_path / "stage"), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        yield client


def levels(price, spread_bps=0.5, size=2.0):
    half = price * spread_bps / 2e4
    steps = half * (1.0 + np.arange(BOOK_LEVELS))
    sides = [price - steps, price + steps]
    return np.stack([np.column_stack([side, np.full((BOOK_LEVELS, 2), size)]) for side in sides])


def bar_with_book(client, **book):
    bars = client.bars(15)
    price, at = bars[-1]["close"], datetime.fromisoformat(bars[-1]["open_time"]) + timedelta(seconds=30)
    bids, asks = levels(price, **book).tolist()
    record = {"known_at": at.isoformat(), "bids": bids, "asks": asks}
    answer = client.call("/observe", {"symbol": SYMBOL, "bars": bars, "books": [record]})
    assert answer.status_code == 200, answer.text
    return client.decide()


@pytest.mark.parametrize(
    ("book", "text"),
    [({"spread_bps": 0.5 * LIMITS.spread_multiple + 0.1}, "spread"), ({"size": 1.9 * LIMITS.depth_share}, "rest in")],
)
def test_a_book_that_is_wide_or_empty_trips(booked, book, text):
    assert bar_with_book(booked)["breakers"] == []
    assert next_decision(booked)["breakers"] == []  # a bar without a book is not judged
    assert bar_with_book(booked, **book)["breakers"] == ["liquidity"]
    assert bar_with_book(booked)["breakers"] == ["liquidity"]
    assert text in stays(booked, "liquidity")


class Clock(datetime):
    """The service's clock, set by hand."""

    moment: datetime

    @classmethod
    def now(cls, tz=None):
        return cls.moment


@pytest.fixture
def trading(stand, home, tmp_path):
    """The same of a market that trades now."""
    trades(home)
    with running_service(on_wall_clock(stand, tmp_path / "wall"), home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        yield client


def test_a_feed_that_stopped_trips_and_one_that_catches_up_does_not(trading, monkeypatch):
    client = trading
    assert next_decision(client)["breakers"] == []  # its bars are of 2024, seen now
    monkeypatch.setattr(
        "serving.service.system_clock.ClockWatch.check", lambda *times: None
    )  # the clock is set on purpose
    close = datetime.fromtimestamp(client.close(), UTC)
    monkeypatch.setattr("serving.service.system_clock.datetime", Clock)
    Clock.moment = close + timedelta(seconds=90)  # as if fed live
    for _ in range(2):  # the second is served by the poll after one with this clock
        client.serve(slot_entry("1", client.champion), None)
    Clock.moment = close + LIMITS.stale_bars * timedelta(minutes=15) + timedelta(seconds=1)
    assert eventually(lambda: status(client)["tier"] == 4)  # the tier that comes and goes
    assert tripped(client) == []
    Clock.moment += timedelta(minutes=15)
    assert eventually(lambda: tripped(client) == ["stale_data"])
    Clock.moment = close + timedelta(days=2)
    client.observe(15)
    assert "are missing since" in stays(client, "stale_data")
    Clock.moment = datetime.fromtimestamp(client.close() + 60, UTC)
    assert released(client, "stale_data")


def test_the_loss_of_a_day_trips_and_a_reset_accepts_it(client):
    assert next_decision(client)["breakers"] == []
    lose(client, "t0", 0.015)
    assert tripped(client) == []
    lose(client, "t1", 0.006)
    reason = stays(client, "daily_loss")
    assert reason.startswith("account on 2024-01-09: -2.09% of the equity at 00:00 UTC")
    assert released(client, "daily_loss")
    after = next_decision(client)
    assert after["breakers"] == []
    assert after["account"]["daily_pnl"] == pytest.approx(0.0)
    assert not any(reason.startswith("DAILY_LOSS") for reason in after["reasons"])
    lose(client, "t2", 0.015, LIVE + timedelta(hours=9))
    assert tripped(client) == []
    lose(client, "t3", 0.006, LIVE + timedelta(hours=9))
    assert tripped(client) == ["daily_loss"]


def test_a_drawdown_over_days_trips_and_a_reset_counts_from_there_also_after_a_restart(stand, home):
    trades(home)
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        for i in range(5):
            lose(client, f"t{i}", 0.0172, AT + (1 + i) * DAY)
        assert client.decide()["breakers"] == ["drawdown"]
        assert released(client, "drawdown")
        client.observe(8)
        decision = client.decide()
        assert (decision["breakers"], decision["account"]["drawdown"]) == ([], 0.0)
        lose(client, "t5", 0.01, AT + 7 * DAY)
        known = status(client)["account"]
    with running_service(stand, home) as client:
        found = status(client)["account"]
        assert (found["equity"], found["peak"]) == pytest.approx((known["equity"], known["peak"]))
        assert tripped(client) == []
        for i in range(6, 10):
            lose(client, f"t{i}", 0.0185, AT + (2 + i) * DAY)
        assert tripped(client) == ["drawdown"]


def test_a_champion_that_keeps_failing_trips_beyond_the_tier(stand, home, tmp_path):
    changed = yaml.safe_load((ROOT / "params.yaml").read_text())
    changed["breakers"]["fault_multiple"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed))
    with running_service(stand, home, BELLWETHER_PARAMS_FILE=str(tmp_path / "params.yaml")) as client:
        broken = make_bundle(home / "bundles", stand.columns, stand.rows, 0.4, broken=True)
        client.serve(slot_entry("3", broken), None)
        found = [bar_with_event(client)["breakers"] for _ in range(PARAMS.tiers.faults_in_row)]
        assert found == [[]] * (PARAMS.tiers.faults_in_row - 1) + [["model"]]  # the decision of the last fault itself
        (trip,) = client.store().breaker_trips()
        assert "validator champion version 3" in trip.reason
        client.serve(slot_entry("1", client.champion), None)
        assert next_decision(client)["breakers"] == ["model"]  # rolled back, and still a person's to reset
        assert released(client, "model")


def test_a_burst_of_rejected_orders_trips_and_those_before_a_reset_count_no_more(client):
    for i in range(LIMITS.max_rejected - 1):
        assert fill(client, i, status="rejected", price=None, reason="margin").json()["breakers"] == []
    last = fill(client, LIMITS.max_rejected, status="rejected", price=None, reason="margin")
    assert last.json() == {
        "api": 1,
        "id": f"f{LIMITS.max_rejected}",
        "new": True,
        "slippage_bps": None,
        "breakers": ["execution"],
    }
    assert "last reason 'margin'" in stays(client, "execution")
    assert released(client, "execution")
    assert fill(client, 20, status="rejected", price=None).json()["breakers"] == []


def test_slippage_over_a_whole_window_trips(client):
    answers = [fill(client, i, price=100.06).json() for i in range(LIMITS.fills)]
    assert [a["breakers"] for a in answers] == [[]] * (LIMITS.fills - 1) + [["execution"]]
    assert answers[0]["slippage_bps"] == pytest.approx(6.0)
    assert "mean slippage" in stays(client, "execution")


def test_a_fill_is_taken_once_and_only_of_a_decision_that_opened_something(client):
    assert fill(client, 1).json()["new"] is True
    assert fill(client, 1).json()["new"] is False
    assert fill(client, 1, price=99.0).status_code == 400
    assert status(client)["breakers"] == []
    assert fill(client, 2, decision_id="never").status_code == 404  # the venue has a position that we do not have
    assert "fill f2 of a position that we do not have" in stays(client, "account_mismatch")
    assert [alarm.severity for alarm in alarms(client, "account_mismatch")] == ["critical"]
    idle = next_decision(client)
    assert idle["action"] == "NO_TRADE"
    assert fill(client, 3, decision_id=idle["id"]).status_code == 400
    assert fill(client, 4, price=None).status_code == 400
    assert fill(client, 5, status="rejected").status_code == 400
    assert client.call("/fill", {}, {}).status_code == 401
    assert [f.id for f in client.store().fills(source="reported")] == ["f1"]


# ---- fail closed, and what outlives a process


def test_a_trip_that_cannot_be_written_refuses_all_the_same_and_is_written_when_it_can_be(client):
    def rename(before, after):
        with closing(sqlite3.connect(client.home / "store.db")) as other:
            other.execute(f"ALTER TABLE {before} RENAME TO {after}")

    sent = spiked(client)
    for _ in range(5):
        rename("latches", "taken_away")
        if client.call("/observe", sent).status_code == 200 or tripped(client):
            break
        rename("taken_away", "latches")  # a poll of the store found it first, and the bar was refused
        assert eventually(lambda: client.call("/decide", {"symbol": SYMBOL}).status_code == 200)
    assert client.call("/decide", {"symbol": SYMBOL}).status_code == 503
    assert tripped(client) == ["volatility_spike"]
    rename("taken_away", "latches")
    assert eventually(lambda: [trip.name for trip in client.store().breaker_trips()] == ["volatility_spike"])
    assert client.decide()["breakers"] == ["volatility_spike"]


def test_a_restart_evaluates_the_newest_bar_again_unless_a_person_has_reset_what_it_tripped(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        spike(client)
        assert tripped(client) == ["volatility_spike"]
        client.decide()
        store = client.store()
    with closing(sqlite3.connect(home / "store.db")) as other:  # as if killed between the bar and its trip
        other.execute("DELETE FROM latches")
        other.commit()
    with running_service(stand, home) as client:
        assert tripped(client) == ["volatility_spike"]
        assert eventually(store.breaker_trips)
        reset(store, "volatility_spike", datetime.now(UTC), "ann", "a print of the venue")
    with running_service(stand, home) as client:
        assert tripped(client) == []


KILLED = """
import json, os, signal, sys, warnings
warnings.simplefilter("ignore")
from starlette.testclient import TestClient
from serving.service.decision_service import DecisionService
with TestClient(DecisionService.to_asgi(), base_url="http://127.0.0.1:3000") as http:
    for path, body in json.load(sys.stdin):
        answer = http.post(path, json=body, headers={"Authorization": "Bearer test-key"})
        assert answer.status_code == 200, answer.text
    print(json.dumps(answer.json()["breakers"]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_after_an_answer_leaves_the_breaker_it_named_tripped(stand, home):
    sender = Client(None, home, stand)
    families = {"validator": {"champion": slot_entry("1", sender.champion)}}
    serve_arms(Settings(home=home), families, sender.warm, AT)
    bodies = [("/observe", {"symbol": SYMBOL, "bars": sender.bars(8)}), ("/observe", spiked(sender))]
    bodies.append(("/decide", {"symbol": SYMBOL}))
    env = {**os.environ, "BELLWETHER_HOME": str(home), "BELLWETHER_WRITE_KEY": "test-key"}
    done = subprocess.run([sys.executable, "-c", KILLED], input=json.dumps(bodies), cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["volatility_spike"]
    with running_service(stand, home) as client:
        assert [trip.name for trip in client.store().breaker_trips()] == ["volatility_spike"]
        client.sent = sender.sent
        assert next_decision(client)["breakers"] == ["volatility_spike"]


# ---- the trips of a process


@pytest.fixture
def monitor(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 's.db'}")
    ledger = Ledger(store)
    yield BreakerMonitor(PARAMS, ledger), store
    ledger.close()
    store.close()


SPIKE = BreakerInputs("x", true_range=inf)


def test_a_store_read_before_a_trip_was_written_does_not_clear_it(monitor):
    mine, store = monitor
    written, trips = mine.confirmed_writes(), store.breaker_trips(tripped_only=False)
    assert list(mine.evaluate(SPIKE, AT)) == ["volatility_spike"]
    mine.pending_writes()[0].result(10)
    assert mine.sync(trips, written) == {}
    assert mine.names == ("volatility_spike",)
    written, trips = mine.confirmed_writes(), store.breaker_trips(tripped_only=False)
    assert mine.sync(trips, written) == {}
    assert (mine.names, mine.sent) == (("volatility_spike",), {})


def test_the_same_cause_trips_once_and_a_new_one_again(monitor):
    mine, store = monitor
    mine.evaluate(SPIKE, AT)
    assert mine.evaluate(SPIKE, AT) == {}
    mine.pending_writes()[0].result(10)
    store.reset("volatility_spike", AT, "ann", "seen")
    mine.sync(store.breaker_trips(tripped_only=False), mine.confirmed_writes())
    assert (mine.names, mine.evaluate(SPIKE, AT)) == ((), {})
    assert list(mine.evaluate(replace(SPIKE, about="y"), AT)) == ["volatility_spike"]


def test_a_writer_that_has_ended_leaves_the_refusal_here(monitor):
    mine, _ = monitor
    mine.ledger.close()
    assert list(mine.evaluate(SPIKE, AT)) == ["volatility_spike"]
    assert mine.names == ("volatility_spike",)
    assert mine.retry_writes() is not None
