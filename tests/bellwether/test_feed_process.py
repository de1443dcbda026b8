"""The feed process: what it waits for, what it holds for, where it goes on, and what stops it."""

import threading
import time
from datetime import timedelta

import numpy as np
import pytest
from support.feed_service import MINUTES, QUARTERS, StoringService, minutes

from bellwether.operations import feed as feed_module
from bellwether.operations.feed import FeedProcess, FeedRun, learning
from bellwether.operations.feed_delivery import Stopped
from bellwether.operations.feed_markets import OpenFeed
from bellwether.operations.feed_report import FeedReport
from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order
from flows.support import processes
from flows.support.installation import Installation, holder, now
from pipelines.contracts import OPEN_TIME
from pipelines.costs import costs_of
from pipelines.data.feeds import FeedMarket, FeedRequest, make_feed
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store
from serving.state.feed_state import read_feed_state

T = 1_704_067_200.0
A, B = "SIM/USDT", "SIMB/USDT"
WANTED = FeedOrder(True)


@pytest.fixture
def installation(tmp_path):
    """A home with a store; a bar of a quarter hour takes two milliseconds."""
    params = load_params()
    params = params.model_copy(update={"feed": params.feed.model_copy(update={"speed": 450_000.0})})
    opened = Installation(Settings(home=tmp_path), params, Store.open(f"sqlite:///{tmp_path}/store.db"))
    write_order(opened.settings, WANTED)
    yield opened
    opened.store.close()


@pytest.fixture
def service(installation):
    return StoringService(installation.store)


def opened(installation, n):
    """Return the feed of a file with n closes of two symbols, which goes on after the newest stored bar."""
    found = {s: installation.store.newest_bar(s) for s in (A, B)}
    markets = {s: FeedMarket(s, MINUTES, QUARTERS, T - 60.0 if at is None else at) for s, at in found.items()}
    feed = make_feed("files", FeedRequest(markets, load=lambda symbol: (minutes(T, 15 * n), (None, None))))
    return OpenFeed(feed, markets, dict.fromkeys(markets, costs_of(load_params().costs, "simulator", "spot")), False)


def running(installation, service, n, stopped=lambda: False):
    """Return one run of the feed."""
    report = FeedReport(installation.settings.serving_dir)
    return FeedRun(installation, service, WANTED, report, stopped, opened(installation, n))


def closes(n):
    return [T + 900.0 * (i + 1) for i in range(n)]


def test_it_delivers_every_close_at_its_speed_and_says_that_the_files_end(installation, service):
    began = time.monotonic()
    running(installation, service, 60).run()
    assert time.monotonic() - began > 59 * 0.002
    assert service.decided(A) == service.decided(B) == closes(60)
    order = read_order(installation.settings)
    assert not order.wanted
    assert order.why == "the recorded bars end at 2024-01-01 15:00:00 UTC"


class Killed(BaseException):
    """End a run where a SIGKILL would."""


def dying(service, nth, fault):
    """Make the nth call of a service end the run, before or after the service has done it."""
    calls = [0]

    def mortal(whole):
        def call(*arguments):
            calls[0] += 1
            if calls[0] == nth and fault == "before":
                raise Killed
            answer = whole(*arguments)
            if calls[0] == nth:
                raise Killed
            return answer

        return call

    service.observe_all, service.decide_all = mortal(service.observe_all), mortal(service.decide_all)
    return service


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_feed_that_is_killed_in_a_call_goes_on_where_the_store_ends(installation, service, fault):
    for nth in (1, 8, 9):  # the first observe, a decide, an observe
        client = dying(StoringService(installation.store), nth, fault)
        report = FeedReport(installation.settings.serving_dir)
        run = FeedRun(installation, client, WANTED, report, lambda: False, opened(installation, 10))
        with pytest.raises(Killed):
            run.run()
    running(installation, service, 10).run()
    assert service.decided(A) == service.decided(B) == closes(10)
    assert installation.store.bars(A)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(150)).tolist()


def test_a_symbol_that_lacks_bars_is_filled_before_the_feed_goes_on(installation, service):
    bars = minutes(T, 45)
    installation.store.add_bars(BarBatch(A, bars, bars[:, OPEN_TIME] + 60.0, now()))
    running(installation, service, 5).run()
    assert installation.store.bars(B)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(75)).tolist()
    assert service.decided(A) == service.decided(B) == closes(5)[2:]  # the newest stored close had no decision


def test_market_time_is_held_while_a_retrain_or_a_promotion_runs(installation, service):
    store, minute = installation.store, timedelta(minutes=1)
    assert learning(store) is None
    store.request_retrain("validator", "drift", now(), minute)
    assert learning(store) is None  # it waits for a worker
    request = store.claim_retrain(holder(), now(), minute)
    assert learning(store) == "a retrain of validator runs (drift)"
    run = running(installation, service, 3)
    thread = threading.Thread(target=run.run, daemon=True)
    thread.start()
    time.sleep(0.4)
    assert service.calls == []
    assert run._report.state().held == "a retrain of validator runs (drift)"
    store.finish_retrain(request.id, holder(), now(), True, "")
    thread.join(timeout=10.0)
    assert service.decided(A) == closes(3)
    store.acquire_lease("promotion", holder(), now(), minute)
    assert learning(store) == "a promotion runs"
    store.release_lease("promotion", holder())
    store.acquire_lease("promotion", "elsewhere:1", now() - 2 * minute, minute)
    assert learning(store) is None  # its time is over


def test_a_retrain_whose_worker_is_gone_holds_nothing(installation):
    installation.store.request_retrain("validator", "drift", now(), timedelta(minutes=1))
    gone = holder().rpartition(":")[0] + ":999999999"
    installation.store.claim_retrain(gone, now(), timedelta(minutes=1))
    assert learning(installation.store) is None


def test_an_installation_that_waits_for_nothing_is_not_held(installation, service):
    params = installation.params
    installation.params = params.model_copy(update={"feed": params.feed.model_copy(update={"wait_for": "nothing"})})
    installation.store.request_retrain("validator", "drift", now(), timedelta(minutes=1))
    installation.store.claim_retrain(holder(), now(), timedelta(minutes=1))
    running(installation, service, 3).run()
    assert service.decided(A) == closes(3)


@pytest.mark.parametrize("how", ["the process ends", "a person stops it", "another source is ordered"])
def test_a_feed_stops_when_it_is_told_to_and_at_once(installation, service, how):
    params = installation.params
    installation.params = params.model_copy(update={"feed": params.feed.model_copy(update={"speed": 1.0})})
    stop = [False]
    run = running(installation, service, 3, lambda: stop[0])
    ended = []

    def until_stopped():
        try:
            run.run()
        except Stopped:
            ended.append("stopped")

    thread = threading.Thread(target=until_stopped, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10.0
    while not service.calls and time.monotonic() < deadline:
        time.sleep(0.01)
    if how == "the process ends":
        stop[0] = True
    else:
        source = "push" if how.startswith("another") else None
        write_order(installation.settings, FeedOrder(source is not None, source))
    thread.join(timeout=5.0)
    assert ended == ["stopped"]


def test_an_order_outlives_its_processes_and_a_damaged_one_wants_nothing(installation):
    settings = installation.settings
    assert read_order(settings) == WANTED
    (settings.home / "run" / "state.json").write_text("{}")
    assert [file.name for file in processes.leftovers(settings)] == ["state.json"]
    for text in ("", "[]", '{"wanted": 1}', "{"):
        (settings.home / "run" / "feed.json").write_text(text)
        assert not read_order(settings).wanted


def test_the_process_is_idle_until_all_it_needs_is_there_and_says_what_is_missing(installation, monkeypatch):
    settings = installation.settings
    write_order(settings, FeedOrder())
    process = FeedProcess(settings)
    started = []
    monkeypatch.setattr(feed_module, "FeedRun", lambda *arguments: started.append(arguments) or _Ended(process))
    monkeypatch.setattr(process, "_client", lambda where: _Nothing())
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()

    def reason(words):
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            state = read_feed_state(settings.serving_dir)
            if state is not None and state.stopped and words in (state.held or ""):
                return True
            time.sleep(0.05)
        return False

    assert reason("no feed is wanted")
    assert processes._is_writing(settings, read_feed_state(settings.serving_dir).pid)
    write_order(settings, WANTED)
    assert reason("there is no data version yet")
    (settings.workspace / "data").mkdir(parents=True)
    (settings.workspace / "data" / "manifest.json").write_text("{}")
    assert reason("no model was ever published")
    assert not started
    (settings.serving_dir / "generation.json").write_text("{}")
    thread.join(timeout=10.0)
    assert len(started) == 1
    assert reason("the feed process ended")


class _Ended:
    """A run that ends the process."""

    def __init__(self, process):
        self.process = process

    def run(self):
        self.process.stop_requested = True


class _Nothing:
    """A client that is opened and closed."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None
