"""Feed, service and flows are each killed once while the market goes: no bar lost, no decision doubled, by itself."""

from collections import Counter

import numpy as np
import psutil
import pytest
import yaml
from support.stack import until

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


def closes_since(running, first):
    """Return how many decision bars of a symbol have closed since `first` (epoch s), of the one that is behind."""
    newest = [running.store.newest_bar(symbol) or first for symbol in SYMBOLS]
    return int((min(newest) - first) // STEP_S)


def test_each_is_killed_once_and_the_market_goes_on_by_itself(home):
    before = {symbol: home.store.newest_bar(symbol) for symbol in SYMBOLS}
    first = min(before.values())
    home.json("feed", "start")
    until(lambda: closes_since(home, first) > 4, 60.0, "the feed to begin")
    for name in ("feed", "decision", "flows"):
        since = closes_since(home, first)
        until(lambda since=since: closes_since(home, first) >= since + BETWEEN, 60.0, "the market to go on")
        pid = processes.services(home.settings)[name]["pid"]
        psutil.Process(pid).kill()
        killed_at = closes_since(home, first)
        until(lambda at=killed_at: closes_since(home, first) > at + 8, 90.0, f"the market to go on without {name}")
        until(
            lambda one=name, old=pid: (
                (found := processes.services(home.settings)[one])["state"] == "up" and found["pid"] != old
            ),
            120.0,
            f"{name} to be started again",
        )
    last = closes_since(home, first)
    until(lambda: closes_since(home, first) >= last + AFTER, 60.0, "the market to go on after all were killed")
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
