"""A dead feed is stale within two bars: in each of the four feeds, by what it wrote last, and in a real service."""

import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.decision_service import running_service
from support.feed_service import MINUTES, QUARTERS, StoringService, minutes
from support.recorded_exchange import START, RecordedExchange, VenueScript, made_bars
from support.serving_fixture import SYMBOL, stand

from bellwether.operations.feed import FeedRun
from bellwether.operations.feed_delivery import Stopped
from bellwether.operations.feed_markets import OpenFeed
from bellwether.operations.feed_report import FeedReport
from bellwether.operations.feed_wanted import FeedOrder, write_order
from flows.support.installation import Installation
from pipelines.clock import Clock
from pipelines.contracts import OPEN_TIME, utc
from pipelines.costs import costs_of
from pipelines.data.feeds import FEEDS, FeedMarket, FeedRequest, make_feed
from pipelines.data.readers.exchange import Backfill
from pipelines.market_params import ExchangeParams
from pipelines.settings import Settings, load_params, settings
from pipelines.store import BarBatch, Store
from serving.client import Client
from serving.state.feed_state import ALIVE_S, FeedWatch

__all__ = ["stand"]
T = 1_704_067_200.0
A = "SIM/USDT"
WANTED = FeedOrder(True)
LIMIT = load_params().risk.max_data_age_bars


class Dead(BaseException):
    """End a run where a SIGKILL would."""


@pytest.fixture
def installation(tmp_path):
    """A home at the default speed."""
    opened = Installation(Settings(home=tmp_path), load_params(), Store.open(f"sqlite:///{tmp_path}/store.db"))
    write_order(opened.settings, WANTED)
    yield opened
    opened.store.close()


class Mortal(StoringService):
    """Die at the third decision."""

    def decide_all(self, symbols):
        if len(self.decided(A)) == 2:
            raise Dead
        return super().decide_all(symbols)


def request_of(name, installation, newest, tmp_path):
    """Return what the feed of that name is made of; bars after `newest`, and the exchange that must be closed."""
    markets = {A: FeedMarket(A, MINUTES, QUARTERS, newest)}
    store = installation.store
    if name == "simulator":
        spec = installation.params.simulator.model_copy(update={"history_days": 1, "live_days": 1})
        return FeedRequest(markets, spec=spec), None
    if name == "files":
        return FeedRequest(markets, load=lambda symbol: (minutes(T, 90), (None, None))), None
    if name == "push":
        return FeedRequest(markets, stored=lambda symbol, after: store.bars(symbol, after=after)), None
    exchange = RecordedExchange(START + 4000.0, binance=VenueScript(made_bars(60), symbol=A))
    plan = Backfill(
        ExchangeParams(venues=("binance",), timeframe="1m", silence_bars=60), utc(START), tmp_path, exchange.url,
        sleep=lambda seconds: None,
    )  # fmt: skip
    return FeedRequest(markets, plan=plan, now=lambda: START + 4000.0), exchange


@pytest.mark.parametrize("name", FEEDS)
def test_the_data_of_a_dead_feed_are_stale_within_two_bars(name, installation, tmp_path):
    monday = installation.params.simulator.start.timestamp() + 86_400.0 if name == "simulator" else T
    request, exchange = request_of(name, installation, monday - 60.0, tmp_path)
    report = FeedReport(installation.settings.serving_dir)
    costs = {A: costs_of(installation.params.costs, "simulator", "spot")}
    opened = OpenFeed(make_feed(name, request), request.markets, costs, False)
    service = Mortal(installation.store)
    run = FeedRun(installation, service, WANTED, report, lambda: False, opened)
    pushing = threading.Thread(target=push, args=(installation.store,), daemon=True)
    if name == "push":
        pushing.start()
    try:
        with pytest.raises(Dead):
            run.run()
    finally:
        if exchange is not None:
            exchange.close()
    report.write()  # as the thread of the process did a moment before it was killed
    close = installation.store.newest_bar(A) + 60.0
    died = datetime.now(UTC)
    clock = Clock("market")
    bar_s = 900.0 / report.speed
    watch = FeedWatch(installation.settings.serving_dir, installation.params.feed.speed)
    watch.look(died)
    watch.record_arrival(A, died)
    stale_after = first_stale(watch, clock, close, died, step_s=min(bar_s / 20.0, 1.0))
    assert stale_after <= (LIMIT + 0.1) * bar_s
    assert not watch.state.is_alive(died + timedelta(seconds=ALIVE_S + 1.0))


def push(store):
    """Store a close a moment later than the last, as one who pushes bars."""
    for i in range(4):
        bars = minutes(T + 900.0 * i, 15, seed=i)
        store.add_bars(BarBatch(A, bars, bars[:, OPEN_TIME] + 60.0, datetime.now(UTC)))
        time.sleep(1.2)


def first_stale(watch, clock, close, died, step_s):
    """Return after how many wall seconds the newest close is older than the limit, as the service counts it."""
    passed_s = 0.0
    while passed_s < 10_000.0:
        passed_s += step_s
        wall = died + timedelta(seconds=passed_s)
        watch.look(wall)
        at = clock.now(utc(close), wall, watch.passed_s(A, wall))
        if QUARTERS.age_bars(close, at.timestamp()) > LIMIT:
            return passed_s
    raise AssertionError("never stale")


def test_a_feed_that_dies_while_it_holds_market_time_is_stale_two_bars_after_it_is_known_to_be_dead(installation):
    report = FeedReport(installation.settings.serving_dir)
    report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    report.delivered(T, 15)
    report.hold("a retrain runs")
    report.write()
    died = datetime.now(UTC)
    watch = FeedWatch(installation.settings.serving_dir, 900.0)
    watch.look(died)
    watch.record_arrival(A, died)
    assert ALIVE_S < first_stale(watch, Clock("market"), T, died, 0.05) <= ALIVE_S + LIMIT + 0.2


# ---- a real service


def real_client(http):
    """Return our client over the HTTP of the service in this process."""
    client = Client(settings())
    headers = client._http.headers
    client._http.close()
    client._http = http
    http.headers["Authorization"] = headers["Authorization"]
    return client


def test_a_real_service_trades_nothing_once_its_feed_is_dead_and_goes_on_with_the_next_one(stand, tmp_path):
    speed = 3_600.0  # a bar a quarter second
    (tmp_path / "bundles").mkdir()
    with running_service(stand, tmp_path) as service:
        service.serve(None, None)
        params = load_params()
        params = params.model_copy(update={"feed": params.feed.model_copy(update={"speed": speed})})
        home = Installation(settings(), params, service.store())
        write_order(home.settings, WANTED)
        newest = float(stand.base[len(stand.base) - len(stand.live) - 1, OPEN_TIME])

        def run(closes):
            """Run a feed in this thread and end it as a SIGKILL would, after so many closes."""
            stored = home.store.newest_bar(SYMBOL)
            markets = {SYMBOL: FeedMarket(SYMBOL, MINUTES, QUARTERS, newest if stored is None else stored)}
            feed = make_feed("files", FeedRequest(markets, load=lambda symbol: (stand.base, (None, None))))
            opened = OpenFeed(feed, markets, {SYMBOL: costs_of(params.costs, "simulator", "spot")}, False)
            report = FeedReport(home.settings.serving_dir)
            one = FeedRun(home, real_client(service.http), WANTED, report, lambda: one.delivery.counts.closes >= closes,
                          opened)  # fmt: skip
            writer = threading.Thread(target=report._run, daemon=True)
            writer.start()
            with pytest.raises(Stopped):
                one.run()
            report._ended.set()
            writer.join()
            return one

        first = run(12)
        assert first.delivery.counts.decisions == 12
        made = home.store.decisions(SYMBOL)
        assert all(record.decision.tier < 4 for record in made)
        deadline = time.monotonic() + 20.0
        while (answer := service.decide())["tier"] != 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert answer["tier"] == 4
        assert any(reason.startswith("STALE_DATA: ") for reason in answer["reasons"])
        while not (raised := [a.detail for a in home.store.alarms() if "stale" in a.detail]):
            assert time.monotonic() < deadline, home.store.alarms()
            time.sleep(0.1)
        assert "feed" in raised[0]
        before = len(home.store.bars(SYMBOL))
        again = run(12)
        assert again.delivery.counts.bars == len(home.store.bars(SYMBOL)) - before
        assert service.decide()["tier"] < 4
        opens = home.store.bars(SYMBOL)[:, OPEN_TIME]
        assert np.all(np.diff(opens) == 60.0)
