"""Feed, service and flows are each killed once while the market goes: no bar lost, no decision doubled, by itself."""

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
import yaml
from support.stack import Stack, until

from flows.support import processes
from pipelines.contracts import OPEN_TIME, utc
from serving.state.feed_state import read_feed_state

pytestmark = pytest.mark.stack
SPEED, STEP_S = 3_600.0, 900.0  # four quarter hours a second
SYMBOLS = ("SIM/USDT", "SIMB/USDT")
BETWEEN, AFTER = 40, 60  # closes of each symbol before the next process is killed, and after the last


@pytest.fixture
def home(stack):
    """Return the stack as it is fed four times as fast as by default, where nothing but kills may hold the market."""
    file = stack.settings.params_file
    before = file.read_text()
    params = yaml.safe_load(before)
    params["feed"]["speed"] = SPEED
    stack.json("freeze", "retrain", "--reason", "only kills may hold this market")
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    try:
        yield stack
    finally:
        stack.json("feed", "stop")
        until(lambda: read_feed_state(stack.settings.serving_dir).stopped, 10.0, "the feed to stop")
        file.write_text(before)
        stack.json("unfreeze", "retrain")


@dataclass
class Market:
    """Follow the market of a home from `first` (epoch s) on, and remember how its feed was at each look."""

    home: Stack
    first: float
    looks: Counter[str] = field(default_factory=Counter)

    def closes(self) -> int:
        """Return how many decision bars of a symbol have closed since `first`, of the one that is behind."""
        feed = read_feed_state(self.home.settings.serving_dir)
        self.looks[feed.condition(utc(time.time())) if feed else "no feed"] += 1
        newest = [self.home.store.newest_bar(symbol) or self.first for symbol in SYMBOLS]
        return int((min(newest) - self.first) // STEP_S)

    def goes_on(self, closes, seconds, what):
        """Wait for so many closes more. Fails with how the feed was meanwhile, and what the services logged last."""
        begins, self.looks = self.closes(), Counter()
        until(lambda: self.closes() >= begins + closes, seconds, what, lambda: self.seen(begins))

    def seen(self, begins):
        """Return what happened since the close number `begins`, in words."""
        states = {name: found["state"] for name, found in processes.services(self.home.settings).items()}
        running = [request for request in self.home.store.retrain_requests(last=20) if request.state == "running"]
        facts = [f"{self.closes() - begins} closes came; the feed was: {dict(self.looks)}", f"services: {states}"]
        facts += [f"running retrains: {running}", f"promotion: {self.home.store.lease('promotion')}"]
        return "\n".join([*facts, *(processes.log_tail(self.home.settings, n) for n in ("feed", "decision", "flows"))])


def test_each_is_killed_once_and_the_market_goes_on_by_itself(home):
    before = {symbol: home.store.newest_bar(symbol) for symbol in SYMBOLS}
    market = Market(home, min(before.values()))
    home.json("feed", "start")
    market.goes_on(5, 60.0, "the feed to begin")
    for name in ("feed", "decision", "flows"):
        market.goes_on(BETWEEN, 60.0, f"the market to go on before {name} is killed")
        pid = processes.services(home.settings)[name]["pid"]
        psutil.Process(pid).kill()
        market.goes_on(9, 90.0, f"the market to go on without {name}")
        until(
            lambda one=name, old=pid: (
                (found := processes.services(home.settings)[one])["state"] == "up" and found["pid"] != old
            ),
            120.0,
            f"{name} to be started again",
        )
    market.goes_on(AFTER, 60.0, "the market to go on after all were killed")
    assert not home.json("feed", "stop")["wanted"]
    until(lambda: read_feed_state(home.settings.serving_dir).stopped, 10.0, "the feed to stop")
    for symbol in SYMBOLS:
        opens = home.store.bars(symbol, after=before[symbol])[:, OPEN_TIME]
        np.testing.assert_array_equal(np.diff([before[symbol], *opens]), 60.0, err_msg=f"{symbol}: a bar was lost")
        since = before[symbol] + 60.0
        decided = Counter(
            record.decision.as_of.timestamp() for record in home.store.decisions(symbol, since=utc(since + 1.0))
        )
        closed = np.arange(since + STEP_S, opens[-1] + 60.0 + 1.0, STEP_S)
        assert [at for at in closed.tolist() if decided[at] == 0] == [], f"{symbol}: a close without a decision"
        assert [at for at, n in decided.items() if n > 1] == [], f"{symbol}: a decision was doubled"
