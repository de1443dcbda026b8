"""The feed process: bars arrive, every symbol decides at every close, outcomes come back. One for each home.

The supervisor runs it: `python -m bellwether.operations.feed`. It is idle until a person orders a feed (`bellwether
run` or `bellwether feed start`) and a data version and models are there. All it knows is in the store and in its order,
so it may be killed at any moment and goes on where it was.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator

from bellwether.operations.feed_delivery import DecisionClient, Delivery, Stopped
from bellwether.operations.feed_markets import OpenFeed, open_feed
from bellwether.operations.feed_pace import Pace
from bellwether.operations.feed_report import SOURCE, FeedReport
from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order
from flows import universe
from flows.support.installation import Installation, is_gone, now
from pipelines.contracts import utc
from pipelines.data.data_version import MANIFEST
from pipelines.data.feeds import Close
from pipelines.errors import BellwetherError
from pipelines.permissions import restrict
from pipelines.settings import Settings, load_params, settings
from pipelines.store import Store, StoreFault
from serving.client import Client
from serving.inference.generation import GENERATION_FILE
from serving.service.home_store import open_store

log = logging.getLogger("bellwether.feed")
LOOK_S = 0.25  # between two looks at the order, at what is learned, at the clock
AGAIN_S = 2.0  # after a fault of the store or of a source
PROMOTION = "promotion"  # the lease under which champions move


class FeedProcess:
    """Run feeds as they are ordered, until SIGTERM."""

    def __init__(self, where: Settings, client: Callable[[Settings], Client] = Client) -> None:
        """Take the settings of the home; nothing is opened yet."""
        self._settings, self._client = where, client
        self.report = FeedReport(where.serving_dir)
        self.stop_requested = False  # set by a signal handler, which must not touch anything else

    def run(self) -> None:
        """Run until `stop_requested`; a fault is logged and tried again."""
        with self.report.written():
            while not self.stop_requested:
                try:
                    self._run_once()
                except Stopped:
                    continue
                except (BellwetherError, StoreFault, OSError) as error:
                    self._rest(f"{type(error).__name__}: {error}", AGAIN_S)

    def _run_once(self) -> None:
        """Run the ordered feed until it ends, is replaced or is not wanted; rest where there is none to run."""
        order = read_order(self._settings)
        if why := self._lacks(order):
            self._rest(why, LOOK_S)
            return
        store = open_store(self._settings)
        try:
            params = load_params(self._settings.params_file)
            installation = Installation(self._settings, params, store)
            with self._client(self._settings) as client:
                FeedRun(installation, client, order, self.report, lambda: self.stop_requested).run()
        finally:
            store.close()

    def _lacks(self, order: FeedOrder) -> str | None:
        """Return why no feed can run now; None if one can."""
        if not order.wanted:
            return order.why or "no feed is wanted; `bellwether feed start` starts one"
        if not (self._settings.workspace / "data" / MANIFEST).is_file():
            return "there is no data version yet; `bellwether run --once` makes the first"
        if not (self._settings.serving_dir / GENERATION_FILE).is_file():
            return "no model was ever published; `bellwether run --once` trains the first"
        return None

    def _rest(self, why: str, seconds: float) -> None:
        """Say that no feed runs and why, and wait."""
        if self.report.held != why:
            log.warning("idle: %s", why)
        self.report.idle(why)
        deadline = time.monotonic() + seconds
        while not self.stop_requested and time.monotonic() < deadline:
            time.sleep(min(LOOK_S, seconds))
            self.report.beat()


class FeedRun:
    """Run one ordered feed over the markets of the newest data version."""

    def __init__(
        self,
        installation: Installation,
        client: DecisionClient,
        order: FeedOrder,
        report: FeedReport,
        stopped: Callable[[], bool],
        opened: OpenFeed | None = None,
    ) -> None:
        """Open the feed, unless one is given. Raises as `open_feed`."""
        self._installation, self._order, self._report, self._stopped = installation, order, report, stopped
        self._manifest = self._manifest_stamp()
        self._logged: str | None = None  # the fault of the source that was logged last
        self._opened = opened or open_feed(installation, order.source)
        self._feed, self._markets = self._opened.feed, self._opened.markets
        step_s = float(max(market.grid.step_s for market in self._markets.values()))
        self._pace = Pace(installation.params.feed.speed if self._feed.paced else 1.0, step_s)
        speed = installation.params.feed.speed if self._feed.paced else 1.0
        report.begin(self._feed.name, speed, self._feed.paced, self._pace.bar_s)
        self.delivery = Delivery(client, installation.store, self._markets, self._opened.costs, report, self._wait)

    def run(self) -> None:
        """Deliver closes until the feed ends, a person stops it, or the universe changes. Raises Stopped."""
        self._begin()
        for close in self._closes():
            self._look()
            if close is None:
                self._nothing_yet()
            else:
                self._deliver(close)
            if self._universe_changed():
                return
        newest = self._report.market_time
        why = f"the recorded bars end at {newest:%F %T} UTC" if newest else "there are no bars after the history"
        if read_order(self._installation.settings) == self._order:  # what a person ordered meanwhile stands
            write_order(self._installation.settings, FeedOrder(False, self._order.source, why))

    def _closes(self) -> Iterator[Close | None]:
        """Yield what the feed yields. While it reads its source, at first perhaps the whole history, it waits."""
        stream = self._feed.stream(list(self._markets))
        while True:
            with self._report.calling(SOURCE):
                try:
                    close = next(stream)
                except StopIteration:
                    return
            yield close

    def _begin(self) -> None:
        """Send what single symbols lack, and decide on the newest close where the last process did not any more."""
        furthest = max(market.closed for market in self._markets.values())
        if self._feed.paced:
            for symbol, market in self._markets.items():
                if market.closed < furthest:
                    log.warning("%s has bars to %s UTC only: filling the gap", symbol, f"{utc(market.closed):%F %T}")
                    with self._report.calling(SOURCE):
                        lacking = self._feed.backfill(symbol, market.closed, furthest)
                    self.delivery.backfill(symbol, lacking)
        self.delivery.resolve_outcomes()
        for symbol, market in self._markets.items():
            newest = self._installation.store.newest_bar(symbol)
            if newest is None:  # nothing was observed yet: the history ends without a decision
                continue
            _, close = market.grid.around(newest)  # NaN where the market is shut: no bar closes then
            whole = market.base.next_close(newest) >= close
            if whole and not self._is_old(close) and self.delivery.lacks_decision(symbol, close):
                log.warning("%s closed at %s UTC without a decision: deciding now", symbol, f"{utc(close):%F %T}")
                self.delivery.decide(close, [symbol])

    def _deliver(self, close: Close) -> None:
        """Deliver a close when it is due, and not while market time is held."""
        moment, outages = close[0], self.delivery.outages
        self._hold()
        while self._feed.paced and (wait_s := self._pace.wait_s(moment)) > 0.0:
            self._wait(min(wait_s, LOOK_S))
        self.delivery.deliver(close, self._feed.sends, decides=not self._is_old(moment))
        if self.delivery.outages > outages:
            self._pace.stand()
        self._pace.delivered(moment)
        self._report.lag_bars = round(self._pace.lag_bars(), 2) if self._feed.paced else self._late_bars()

    def _hold(self) -> None:
        """Hold market time while a retrain or a promotion runs, if the installation waits for them."""
        if not self._feed.paced or self._installation.params.feed.wait_for != "retrain":
            return
        while why := learning(self._installation.store):
            self._report.hold(why)
            self._pace.stand()
            self._wait(LOOK_S)

    def _nothing_yet(self) -> None:
        """Wait until it is worth asking the feed again; say how many bars are late, and why."""
        if self._feed.fault and self._feed.fault != self._logged:
            log.warning("%s", self._feed.fault)
        self._logged = self._feed.fault
        self._report.lag_bars = self._late_bars()
        self._wait(self._feed.poll_s)

    def _late_bars(self) -> float | None:
        """Return how many decision bars of a market by the time of day have closed since the newest; None by another
        clock, whose market goes on when bars come."""
        newest = self._report.market_time
        if not self._opened.wall or newest is None:
            return None
        grid = next(iter(self._markets.values())).grid
        late = grid.slot(time.time()) - grid.slot(newest.timestamp())
        return float(max(late, 0))

    def _is_old(self, close: float) -> bool:
        """Return whether a close (epoch seconds) of a market by the time of day is too old to be decided on."""
        if not self._opened.wall:
            return False
        step_s = max(market.grid.step_s for market in self._markets.values())
        return time.time() - close > self._installation.params.risk.max_data_age_bars * step_s

    # ---- waiting --------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Sleep; raise Stopped as soon as the feed is stopped."""
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            left = deadline - time.monotonic()
            if left <= 0.0:
                return
            time.sleep(min(left, LOOK_S))

    def _look(self) -> None:
        """Note that the loop lives; raise Stopped if the process ends, or another feed is wanted than this one."""
        self._report.beat()
        if self._stopped() or read_order(self._installation.settings) != self._order:
            raise Stopped

    def _manifest_stamp(self) -> tuple[int, ...]:
        """Return when the newest data version and the universe were written, in nanoseconds; 0 where there is none."""
        files = (self._installation.workspace / "data" / MANIFEST, universe.file_of(self._installation))
        return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)

    def _universe_changed(self) -> bool:
        """Return whether a newer data version or universe has other symbols than this feed."""
        stamp = self._manifest_stamp()
        if stamp == self._manifest:
            return False
        try:
            named = universe.symbols(self._installation)
            symbols = [symbol for symbol in self._installation.data_version().symbols if symbol in named]
        except BellwetherError:  # it is being written; the next close looks again
            return False
        self._manifest = stamp
        return set(symbols) != set(self._markets)


def learning(store: Store) -> str | None:
    """Return which retrain or promotion runs now; None if none does. One whose worker is gone does not run."""
    for request in store.retrain_requests(last=20):
        held = request.lease_until is None or request.lease_until > now()
        if request.state == "running" and held and not is_gone(request.holder or ""):
            return f"a retrain of {request.family} runs ({request.reason})"
    lease = store.lease(PROMOTION)
    if lease is not None and lease.expires_at > now() and not is_gone(lease.holder):
        return "a promotion runs"
    return None


def main() -> None:
    """Run the feed of this installation until SIGTERM."""
    restrict()
    process = FeedProcess(settings())

    def stop(*_: object) -> None:
        """Request the stop."""
        process.stop_requested = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.ERROR)
    process.run()


if __name__ == "__main__":
    main()
