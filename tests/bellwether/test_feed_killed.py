"""Feed, service and flows are each killed once while the market goes: no bar lost, no decision doubled, by itself."""

import subprocess
import sys
from collections import Counter

import numpy as np
import psutil
import pytest
import yaml
from support.stack import Stack, environment, until

from flows.support import processes
from pipelines.contracts import OPEN_TIME, utc
from pipelines.settings import ROOT
from serving.state.feed_state import read_feed_state

pytestmark = pytest.mark.stack
SPEED, DAYS, STEP_S = 3_600.0, 16, 900.0  # four quarter hours a second
SYMBOLS = ("SIM/USDT", "SIMB/USDT")
TURN = "from flows.lifecycle import lifecycle; lifecycle(families=['validator', 'regime'])"
BETWEEN, AFTER = 40, 60  # closes of each symbol before the next process is killed, and after the last


@pytest.fixture
def home(tmp_path):
    """Return a running installation of two short markets, after a turn with two families, whose feed is stopped."""
    env = environment(tmp_path / "home")
    file = tmp_path / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["simulator"] |= {"history_days": DAYS, "live_days": 1, "drift_after_live_days": None}
    params["simulator"]["followers"] = params["simulator"]["followers"][:1]
    params["universe"] = {"symbols": list(SYMBOLS), "groups": {"crypto": list(SYMBOLS)}}
    params["feed"]["speed"] = SPEED
    params["retrain"]["enabled"] = False  # nothing but kills may hold this market
    file.write_text(yaml.safe_dump(params, sort_keys=False))
    running = Stack(env, tmp_path / "run.log")
    try:
        done = running.cli("up")
        assert done.returncode == 0, done.stderr
        turn = subprocess.run(
            [sys.executable, "-c", TURN], cwd=ROOT, env=env | processes.environment(running.settings),
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert turn.returncode == 0, (turn.stdout + turn.stderr)[-4000:]
        yield running
    finally:
        running.stop()
        assert processes.home_processes(running.settings) == []
        running.store.close()


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
        opens = home.store.bars(symbol)[:, OPEN_TIME]
        np.testing.assert_array_equal(np.diff(opens), 60.0, err_msg=f"{symbol}: a bar was lost")
        since = before[symbol] + 60.0
        decided = Counter(
            record.decision.as_of.timestamp() for record in home.store.decisions(symbol, since=utc(since + 1.0))
        )
        closed = np.arange(since + STEP_S, opens[-1] + 60.0 + 1.0, STEP_S)
        assert [at for at in closed.tolist() if decided[at] == 0] == [], f"{symbol}: a close without a decision"
        assert [at for at, n in decided.items() if n > 1] == [], f"{symbol}: a decision was doubled"
