"""What `status` says of a universe, its feed and its learning, from stored state and from the service."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bellwether.cli import services
from bellwether.operations import status
from flows.support.frozen import freeze
from flows.support.installation import Installation
from pipelines.contracts import BAR_WIDTH
from pipelines.data.timeframes import Grid
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store
from serving.state.feed_state import FeedState, write_feed_state
from serving.state.service_level import SERVICE_LEVEL_FILE, ServiceLevel

MARKET, WALL = datetime(2024, 6, 5, 10, 10, tzinfo=UTC), datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Return a home of two symbols, one observed, and a third that its data version leaves out."""
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    home = Settings(home=tmp_path, store_url="", decision_port=9)
    found = Installation(home, load_params(), store)
    folder = found.workspace / "data"
    folder.mkdir(parents=True)
    facts = {"timeframe": "1m", "grid": Grid("1m").to_dict(), "first": MARKET.isoformat(), "last": MARKET.isoformat()}
    markets = {name: {**facts, "symbol": name, "clock": "market"} for name in ("A/USD", "B/USD")}
    content = {"format": 2, "markets": markets, "left_out": {"C/USD": "quality 0.4 is under the floor 0.9"}}
    (folder / "manifest.json").write_text(json.dumps(content))
    row = np.full((1, BAR_WIDTH), 100.0)
    row[0, 0] = MARKET.timestamp()
    store.add_bars(BarBatch("A/USD", row, np.array([MARKET.timestamp() + 60.0]), WALL))
    monkeypatch.setattr(status, "open_installation", lambda: found)
    monkeypatch.setattr(status, "settings", lambda: home)
    monkeypatch.setattr(status, "now", lambda: WALL + 90 * timedelta(seconds=1))
    yield found
    store.close()


def by_symbol(found):
    return {one["symbol"]: one for one in found}


def test_without_a_service_every_symbol_of_the_universe_is_there_with_what_the_store_knows(installation):
    found = by_symbol(status.universe(installation, {}))
    assert list(found) == ["A/USD", "B/USD", "C/USD"]
    assert found["A/USD"]["newest_bar"] == (MARKET + MINUTE).isoformat()
    assert (found["A/USD"]["age_s"], found["A/USD"]["age_bars"], found["A/USD"]["tier"]) == (90.0, None, None)
    assert (found["B/USD"]["newest_bar"], found["B/USD"]["age_s"]) == (None, None)
    assert found["C/USD"]["left_out"] == "quality 0.4 is under the floor 0.9"


def test_a_service_that_answers_gives_age_and_tier(installation):
    reported = {"B/USD": {"clock": "market", "age_bars": 0.4, "tier": 3, "tier_reason": "TIER_3: no champion"}}
    found = by_symbol(status.universe(installation, reported))["B/USD"]
    assert (found["age_bars"], found["tier"], found["tier_reason"]) == (0.4, 3, "TIER_3: no champion")


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, "running"),
        ({"held": "a retrain of validator runs"}, "held"),
        ({"stopped": True}, "stopped"),
        ({"at": WALL - MINUTE}, "dead"),
    ],
)
def test_the_feed_is_running_held_stopped_or_dead(installation, facts, state):
    assert status.feed_status(installation, WALL) is None
    written = FeedState(**{"pid": 1, "at": WALL, "source": "simulator", "speed": 900.0, "lag_bars": 1.5, **facts})
    write_feed_state(installation.settings.serving_dir, written)
    found = status.feed_status(installation, WALL)
    assert (found["state"], found["speed"], found["lag_bars"]) == (state, 900.0, 1.5)


def test_the_whole_status_keeps_its_keys_and_shows_what_is_frozen(installation, capsys):
    freeze(installation.settings, "retrain", "ann", "holidays", WALL)
    write_feed_state(installation.settings.serving_dir, FeedState(1, WALL, "simulator", 900.0, market_time=MARKET))
    found = json.loads(json.dumps(status.stored_status()))
    before = {"health", "health_reason", "families", "services", "tier", "data_hash", "figures", "alarms"}
    assert before <= found.keys()
    assert found["market_time"] == (MARKET + MINUTE).isoformat()
    assert [(one["what"], one["by"], one["since"]) for one in found["frozen"]] == [("retrain", "ann", WALL.isoformat())]
    assert found["disabled"] == {"signals": [], "fusion": []}
    assert found["due"]["deployments"] == {}
    services.show_status(found)
    shown = capsys.readouterr().out
    assert "retrain is frozen by ann" in " ".join(shown.split())
    assert "B/USD" in shown
    assert "2024-06-05 10:11" in shown


def test_the_service_level_is_shown_from_its_file_with_counts_share_and_budget(installation, capsys):
    serving, at = installation.settings.serving_dir, WALL.timestamp()
    level = ServiceLevel(serving / SERVICE_LEVEL_FILE, lambda *_: None)
    level.decided([("A/USD", 0.0)], at)
    for day, n in ((2, 1500), (0, 500)):
        for close in range(n):
            level.closed("A/USD", [10_000.0 * (3 - day) + close], at - 86_400.0 * day)
            level.decided([("A/USD", 10_000.0 * (3 - day) + close)], at - 86_400.0 * day + (3.0 if close == 0 else 0.1))
    level.save()
    found = json.loads(json.dumps(status.stored_status()))
    assert found["service_level"]["windows"]["30d"]["due"] == 2000
    services.show_market(found)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert (
        "service level today 499 of 500 closes, 99.800% (1 late, 0 missed); 30 days 1,998 of 2,000 closes, 99.900% "
        "(2 late, 0 missed); decided within 2 s, target 99.9%; budget used 100%"
    ) in " ".join(shown.split())
