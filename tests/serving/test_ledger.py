"""The ledger: durable before acknowledged, one bad entry fails alone, kill -9 loses nothing acknowledged."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from support.records import DECISION

from pipelines.context_layout import TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, Books
from pipelines.errors import BadValues, ServiceDown
from pipelines.settings import ROOT
from pipelines.store import BarBatch, Store
from serving.state.ledger import Ledger

T0 = datetime(2024, 1, 1, tzinfo=UTC)
WRITER = """
import sys, itertools
sys.path.insert(0, {tests!r})
from dataclasses import replace
from pipelines.store import Store
from serving.state.ledger import Ledger
from support.records import DECISION
ledger = Ledger(Store.open({url!r}))
for group in itertools.count():
    ids = [f"{{group}}-{{i}}" for i in range(5)]
    waiting = [ledger.append(replace(DECISION, id=i), b"f", b"s") for i in ids]
    for i, done in zip(ids, waiting):
        done.result()
        print(i, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    opened = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield opened
    opened.close()


@pytest.fixture
def ledger(store):
    writer = Ledger(store)
    yield writer
    writer.close()


def append(ledger, id):
    return ledger.append(replace(DECISION, id=id), b"f", b"s")


def test_an_acknowledged_decision_is_there_for_every_other_reader(store, ledger):
    append(ledger, "a").result(10)
    assert store.decision("a").decision == replace(DECISION, id="a")


def test_many_threads_share_transactions_and_lose_nothing(store, ledger):
    with ThreadPoolExecutor(8) as pool:
        for done in list(pool.map(lambda i: append(ledger, str(i)), range(500))):
            done.result(30)
    assert len(store.decisions()) == 500


def test_one_bad_entry_fails_alone(store, ledger):
    with store.writing():  # holds the writer back, so that all three fall into one transaction
        good, bad, also_good = append(ledger, "a"), append(ledger, "a"), append(ledger, "b")
    good.result(10)
    also_good.result(10)
    with pytest.raises(BadValues, match="never reused"):
        bad.result(10)


def observed(ledger, minute, bid):
    """One bar and, known at the same moment whatever the minute, a book."""
    levels = np.full((1, 2, BOOK_LEVELS, 3), np.nan)
    levels[0, :, 0] = (bid, 1.0, np.nan), (101.0, 1.0, np.nan)
    bars = np.array([[60.0 * minute, 100.0, 100.0, 100.0, 100.0, 1.0, 1.0, 1.0, np.nan]])
    book = Books(np.array([30.0]), levels, np.zeros((1, TAPE_WIDTH)))
    return ledger.observe(BarBatch("SIM/USDT", bars, bars[:, 0] + 60.0, T0, book))


def test_bars_and_the_books_that_came_with_them_are_stored_together_or_not_at_all(store, ledger):
    with store.writing():
        good, bad, also_good = observed(ledger, 0, 99.0), observed(ledger, 1, 98.0), observed(ledger, 2, 99.0)
    assert (good.result(10), also_good.result(10)) == (1, 1)
    with pytest.raises(BadValues, match="another book"):
        bad.result(10)
    assert store.bars("SIM/USDT")[:, 0].tolist() == [0.0, 120.0]
    assert store.records("SIM/USDT")[0].levels[:, 0, 0, 0].tolist() == [99.0]


def test_a_caller_that_stops_waiting_neither_cancels_the_write_nor_stops_the_writer(store, ledger):
    with store.writing():
        left = append(ledger, "a")
        assert not left.cancel()
    append(ledger, "b").result(10)
    assert {record.decision.id for record in store.decisions()} == {"a", "b"}


def test_closing_writes_the_queue_and_accepts_nothing_more(store):
    ledger = Ledger(store)
    waiting = [append(ledger, str(i)) for i in range(50)]
    ledger.close()
    assert all(done.done() for done in waiting)
    with pytest.raises(ServiceDown):
        append(ledger, "late")


def test_every_acknowledged_decision_survives_kill_minus_nine(url):
    code = WRITER.format(url=url, tests=str(ROOT / "tests"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        acknowledged = [process.stdout.readline().strip() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
    store = Store.open(url)
    stored = {r.decision.id for r in store.decisions()}
    store.close()
    assert len(acknowledged) >= 200
    assert set(acknowledged) <= stored
