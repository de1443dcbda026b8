"""The time of learning: the market's where it has its own clock, else the time of day."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flows.support import market_time
from flows.support.installation import Installation
from pipelines.contracts import BAR_WIDTH
from pipelines.data.timeframes import Grid
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store
from serving.state.feed_state import FeedState, write_feed_state

WALL = datetime(2026, 11, 30, 20, 0, tzinfo=UTC)
LAST = datetime(2024, 12, 30, 23, 59, tzinfo=UTC)
MINUTE, HOUR, DAYS = timedelta(minutes=1), timedelta(hours=1), timedelta(days=2)


@pytest.fixture
def installation(tmp_path, monkeypatch):
    monkeypatch.setattr(market_time, "now", lambda: WALL)
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    store.close()


def ingested(installation, **clocks):
    """Write a data version that ends at LAST, with these symbols and clocks."""
    folder = installation.workspace / "data"
    folder.mkdir(parents=True, exist_ok=True)
    markets = {
        name: {"symbol": name, "timeframe": "1m", "grid": Grid("1m").to_dict(), "first": LAST.isoformat(),
               "last": LAST.isoformat(), "clock": clock}
        for name, clock in clocks.items()
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({"format": 2, "markets": markets}))


def observed(installation, symbol, closes, came):
    """Store one bar that closed at `closes` and came at `came`, time of day."""
    row = np.full((1, BAR_WIDTH), 100.0)
    row[0, 0] = (closes - MINUTE).timestamp()
    installation.store.add_bars(BarBatch(symbol, row, np.array([closes.timestamp()]), came))


def test_before_any_data_it_is_the_time_of_day(installation):
    assert market_time.learning_now(installation) == WALL
    assert market_time.market_speed(installation) == 1.0


def test_a_market_with_its_own_clock_is_at_its_newest_close_of_any_symbol(installation):
    ingested(installation, A="market", B="market")
    assert market_time.learning_now(installation) == LAST + MINUTE  # nothing observed yet: the end of the data version
    observed(installation, "A", LAST + HOUR, WALL)
    observed(installation, "B", LAST + 2 * HOUR, WALL + MINUTE)
    observed(installation, "B", LAST + 3 * HOUR, WALL + 2 * MINUTE)
    assert market_time.learning_now(installation) == LAST + 3 * HOUR


def test_a_moment_of_the_day_is_the_market_time_that_was_known_by_then(installation):
    ingested(installation, A="market")
    for hour in (1, 2, 3):
        observed(installation, "A", LAST + hour * HOUR, WALL + hour * MINUTE)
    assert market_time.learning_time_at(installation, WALL) == LAST + MINUTE
    assert market_time.learning_time_at(installation, WALL + 2 * MINUTE) == LAST + 2 * HOUR
    assert market_time.learning_time_at(installation, WALL + DAYS) == LAST + 3 * HOUR


def test_one_market_that_trades_now_makes_it_the_time_of_day_of_the_whole_universe(installation):
    ingested(installation, A="market", B="wall")
    observed(installation, "A", LAST + HOUR, WALL)
    assert market_time.learning_now(installation) == WALL
    assert market_time.learning_time_at(installation, WALL - DAYS) == WALL - DAYS
    assert market_time.market_speed(installation) == 1.0


def test_the_speed_is_that_of_the_feed_and_nothing_without_one(installation):
    ingested(installation, A="market")
    assert market_time.market_speed(installation) == 0.0
    write_feed_state(installation.settings.serving_dir, FeedState(1, WALL, "simulator", 900.0))
    assert market_time.market_speed(installation) == 900.0
    (installation.settings.serving_dir / "feed.json").write_text("{")
    assert np.isnan(market_time.market_speed(installation))


def test_a_request_that_ended_by_another_clock_cools_nothing_down(installation):
    store, cooldown = installation.store, timedelta(hours=24)
    store.request_retrain("validator", "drift", WALL, cooldown)
    request = store.claim_retrain("host:1", WALL, HOUR, "validator")
    store.finish_retrain(request.id, "host:1", WALL, True, "by the time of day, as releases up to 0.10 stored it")
    assert store.request_retrain("validator", "drift", WALL + HOUR, cooldown).state == "cooling_down"
    assert store.request_retrain("validator", "drift", LAST, cooldown).state == "queued"  # two years before
