"""A store that is locked, hangs, is full or damaged: what calls answer and how soon, and that nothing is doubled."""

import errno
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from support.decision_service import running_service
from support.health_page import holds
from support.service_probes import alarms, eventually, next_decision
from support.serving_fixture import SYMBOL, slot_entry

from benchmarks.fault_causes import no_mount, read_only_folder
from pipelines.store import FLOW_WAIT_MS, SERVICE_WAIT_MS, PageCheck, Store, damage
from serving.state import tiers

T0 = datetime(2024, 1, 1, tzinfo=UTC)
AT_ONCE_S = 1.3  # a second, and what a busy machine takes to say so
OUTCOME = {
    "resolved_at": "2024-01-09T09:00:00Z", "label": 1, "barrier": "target", "gross_bps": 6.0, "net_bps": 5.0,
    "cost_bps": 1.0,
}  # fmt: skip


@pytest.fixture
def client(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        yield client


@contextmanager
def locked(home):
    """Lock the store as another writer would."""
    with closing(sqlite3.connect(home / "store.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def timed(call):
    began = time.monotonic()
    return call(), time.monotonic() - began


def calls(client, decision):
    """One of every call that writes; the bars are always the next ones, so that they are new."""
    sent = client.sent
    bars = client.bars(15)
    client.sent = sent
    fill = {"id": "f1", "decision_id": decision["id"], "at": "2024-01-09T09:00:00Z", "status": "filled", "price": 1.0}
    return [
        ("/decide", {"symbol": SYMBOL}),
        ("/observe", {"symbol": SYMBOL, "bars": bars}),
        ("/outcome", {"decision_id": decision["id"], **OUTCOME}),
        ("/fill", fill),
    ]


def doubled(client):
    keys = [(r.decision.as_of, r.decision.generation, r.decision.tier) for r in client.store().decisions()]
    return len(keys) - len(set(keys))


def test_a_service_waits_half_a_second_for_a_lock_and_a_flow_half_a_minute(tmp_path):
    assert (SERVICE_WAIT_MS, FLOW_WAIT_MS) == (500, 30_000)
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with closing(Store.open(url, wait_ms=SERVICE_WAIT_MS)) as store, locked(tmp_path):
        for call in (lambda: store.marks(None), lambda: store.trip("x", None, "y")):
            with pytest.raises(OperationalError, match="locked"):
                call()
        began = time.monotonic()
        with pytest.raises(OperationalError):
            store.marks(None)
        assert time.monotonic() - began < 1.0


def test_under_a_write_lock_every_call_is_refused_at_once_and_all_is_well_when_it_goes(client):
    decision = client.decide()
    with locked(client.home):
        red, waited = timed(lambda: eventually(lambda: client.http.get("/ready").status_code == 503))
        assert (red, waited < AT_ONCE_S) == (True, True)
        for path, body in calls(client, decision):
            answer, took = timed(lambda path=path, body=body: client.call(path, body))
            assert (answer.status_code, took < AT_ONCE_S) == (503, True), (path, took, answer.text)
            assert answer.json()["fields"] == []
            assert "Sending it again is safe" in answer.json()["error"]
        holds(client, "the store is locked or does not answer", "store: store not writable")
        shown = client.http.get("/ready").json()
        assert shown["tier"] == 4
        assert "locked" in shown["health_reason"]
    healed, waited = timed(lambda: eventually(lambda: client.http.get("/ready").status_code == 200))
    assert (healed, waited < 2.0) == (True, True)
    assert client.http.get("/ready").json()["health"] == "UNHEALTHY"  # the tier floor is 4: trust is earned
    assert client.observe(15).json()["new"] == 15
    assert client.decide()["tier"] == 4
    assert doubled(client) == 0


def test_many_who_wait_for_one_lock_wait_no_longer_than_one(client):
    """The lock comes in the midst of them: readiness has not seen it, and they are in the writer's queue."""
    body = {"decision_id": client.decide()["id"], **OUTCOME}
    with locked(client.home), ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: timed(lambda: client.call("/outcome", body)), range(40)))
    assert {answer.status_code for answer, _ in answers} == {503}
    assert max(took for _, took in answers) < AT_ONCE_S + 0.5  # 40 answers take this machine some time, too


def test_a_decision_reported_as_failed_and_stored_all_the_same_is_found_and_not_made_again(client, monkeypatch):
    real, failed = Store.writing, []

    @contextmanager
    def late(self, within=None):
        with real(self, within) as connection:
            yield connection
        if within is None and not failed and threading.current_thread().name == "ledger":
            failed.append(True)
            raise OperationalError("COMMIT", {}, Exception("the connection went away"))

    monkeypatch.setattr(Store, "writing", late)
    assert client.call("/decide", {"symbol": SYMBOL}).status_code == 503
    assert failed
    (stored,) = client.store().decisions()
    assert eventually(lambda: client.http.get("/ready").status_code == 200)
    again = [client.decide() for _ in range(3)]
    assert {one["id"] for one in again} == {stored.decision.id}
    assert again[0]["tier"] == 2  # as it was made; the next bar feels the fault
    client.observe(15)
    assert client.decide()["tier"] == 4
    assert len(client.store().decisions()) == 2


def test_the_same_request_has_the_same_id_in_any_process_and_another_request_another(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        first = client.decide()
        client.observe(15)
        other = client.decide()
    with closing(sqlite3.connect(home / "store.db")) as database:
        database.execute("DELETE FROM decisions")
        database.commit()
    with running_service(stand, home) as client:
        assert eventually(lambda: client.http.get("/ready").status_code == 200)
        assert client.decide()["id"] == other["id"] != first["id"]


def test_a_stored_decision_replaces_the_one_that_is_made_again(client, monkeypatch):
    """As after a crash between COMMIT and the answer: nothing in memory knows of it."""
    monkeypatch.setattr("serving.service.decision_memory.MAX_CACHED_DECISIONS", 0)
    client.observe(15 * 3)
    answers = [client.decide() for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    (stored,) = client.store().decisions()
    assert stored.decision.id == answers[0]["id"]


@pytest.mark.parametrize("hangs", ["add_decisions", "add_all_bars", "add_outcome", "decision"])
def test_a_database_that_hangs_delays_no_caller_and_what_it_did_late_is_found(client, monkeypatch, hangs):
    """The database neither fails nor answers, as a stopped server does: the service has to end the wait."""
    decision = client.decide()
    client.observe(15)
    go, real = threading.Event(), getattr(Store, hangs)

    def stopped(self, *args, **kwargs):
        go.wait(20)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Store, hangs, stopped)
    path, body = next(
        call
        for call in calls(client, decision)
        if call[0]
        == {"add_decisions": "/decide", "add_all_bars": "/observe", "decision": "/fill"}.get(hangs, "/outcome")
    )
    for _ in range(3):
        answer, took = timed(lambda: client.call(path, body))
        assert (answer.status_code, took < AT_ONCE_S) == (503, True), (took, answer.text)
    assert client.http.get("/ready").status_code == 503
    go.set()
    assert eventually(lambda: client.http.get("/ready").status_code == 200)
    answer = client.call(path, body)
    assert answer.status_code in ({200} if hangs != "decision" else {200, 400}), answer.text
    assert doubled(client) == 0
    if hangs == "add_decisions":
        (late,) = [r.decision for r in client.store().decisions() if r.decision.as_of.timestamp() == client.close()]
        assert (late.id, late.tier) == (answer.json()["id"], 2)


def test_a_postgresql_that_is_stopped_delays_no_caller_and_all_is_found_when_it_goes_on(stand, home, postgres_url):
    port = sa.make_url(postgres_url).port
    with running_service(stand, home, BELLWETHER_STORE_URL=postgres_url) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)
        decision = client.decide()
        client.observe(15)
        head = next(c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN")
        server = [psutil.Process(head), *psutil.Process(head).children(recursive=True)]
        for process in server:
            process.suspend()
        try:
            for path, body in calls(client, decision):
                answer, took = timed(lambda path=path, body=body: client.call(path, body))
                assert (answer.status_code, took < AT_ONCE_S) == (503, True), (path, took, answer.text)
            shown = client.http.get("/ready")
            assert (shown.status_code, shown.json()["health_reason"].count("not writable")) == (503, 1)
        finally:
            for process in server:
                process.resume()
        healed, waited = timed(lambda: eventually(lambda: client.http.get("/ready").status_code == 200))
        assert (healed, waited < 2.0) == (True, True)
        answers = [client.call(path, body).status_code for path, body in calls(client, decision)]
        assert answers == [200, 200, 200, 400]  # nothing was opened, so that nothing can be filled
        assert (doubled(client), len(client.store().decisions())) == (0, 2)


# ---- a disk that is full


def test_state_that_cannot_be_saved_is_a_503_and_no_500_and_heals_when_there_is_room(client, monkeypatch):
    next_decision(client)
    full = [True]
    real = tiers.write_atomically

    def write(file: Path, content):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        real(file, content)

    monkeypatch.setattr(tiers, "write_atomically", write)
    client.serve(None, None)  # the tier changes, and its file has to be written
    answer = client.call("/decide", {"symbol": SYMBOL})
    assert answer.status_code == 503, answer.text
    assert "No space left" in answer.json()["error"]
    holds(client, "the disk is full", "No space left")
    full[0] = False
    assert eventually(lambda: client.http.get("/ready").status_code == 200)
    assert client.call("/decide", {"symbol": SYMBOL}).status_code == 200


EVERY_WRITE_GROWS = """
CREATE TABLE log_of_test (content BLOB);
CREATE TRIGGER grow_by_insert AFTER INSERT ON leases BEGIN INSERT INTO log_of_test VALUES (zeroblob(100000)); END;
CREATE TRIGGER grow_by_update AFTER UPDATE ON leases BEGIN INSERT INTO log_of_test VALUES (zeroblob(100000)); END;
"""


def test_a_full_database_is_a_503_of_every_call_and_heals_when_there_is_room(client):
    decision = client.decide()
    full = [True]
    # on a full disk the log cannot grow, so no write ends; a limit of pages alone lets a row pass that fits its page
    with closing(sqlite3.connect(client.home / "store.db")) as database:
        database.executescript(EVERY_WRITE_GROWS)

    def checkout(connection, *_):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages if full[0] else 1 << 30}")

    sa.event.listen(sa.pool.Pool, "checkout", checkout)
    try:
        refused = {}
        for _ in range(60):  # the free pages have to be used up first
            sent = client.sent
            answer = client.observe(15)
            if answer.status_code != 200:
                client.sent = sent
                refused["/observe"] = answer
                break
        assert refused["/observe"].status_code == 503
        assert "full" in refused["/observe"].json()["error"]
        holds(client, "the disk is full", "full")
        for _ in range(20):  # and goes on: a poll finds no write that ends
            time.sleep(0.05)
            assert client.http.get("/ready").status_code == 503
        full[0] = False
        assert eventually(lambda: client.http.get("/ready").status_code == 200)
        assert client.observe(15).json()["new"] == 15
        assert client.decide()["id"] != decision["id"]
        assert doubled(client) == 0
    finally:
        sa.event.remove(sa.pool.Pool, "checkout", checkout)


# ---- pages


def spoil(file, page=3):
    """Overwrite a page of a closed store."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = database.execute("PRAGMA page_size").fetchone()[0]
    with open(file, "r+b") as handle:
        handle.seek(page * size)
        handle.write(bytes(range(256)) * (size // 256))


@pytest.mark.parametrize("page", [1, 3, 5])
def test_a_damaged_page_is_found_and_a_whole_store_is_not_accused(tmp_path, page):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    Store.open(url).close()
    assert damage(url) is None
    spoil(tmp_path / "store.db", page)
    assert damage(url)


def test_what_is_not_a_database_is_damaged_and_a_missing_one_is_reported(tmp_path):
    (tmp_path / "store.db").write_bytes(b"hello" * 1000)
    assert "not a database" in damage(f"sqlite:///{tmp_path / 'store.db'}")
    assert "is not there" in damage(f"sqlite:///{tmp_path / 'none.db'}")
    assert damage("postgresql://nobody@127.0.0.1:1/none") is None  # it checks its own pages


def test_a_check_waits_for_no_writer_and_ends_when_it_is_stopped(tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    Store.open(url).close()
    with locked(tmp_path):
        assert damage(url) is None
    check = PageCheck(url)
    check.stop()
    assert check.run() is None


def test_a_store_that_is_damaged_turns_readiness_red_opens_nothing_and_names_the_remedy(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        for _ in range(3):
            client.observe(15)
        assert eventually(lambda: "whole" in client.http.get("/ready").text)
    with closing(sqlite3.connect(home / "store.db")) as database:  # an index that is not read while it runs
        root = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'promotions'").fetchone()[0]
    spoil(home / "store.db", root - 1)
    with running_service(stand, home) as client:
        holds(client, "the store is damaged", "store pages:")
        assert eventually(lambda: alarms(client, "store_damaged"))
        assert "bellwether restore" in alarms(client, "store_damaged")[0].detail


@pytest.mark.skipif(bool(no_mount()), reason=no_mount())
def test_a_connection_that_was_opened_while_nothing_could_be_written_is_opened_again(tmp_path):
    home = tmp_path / "home"
    store = Store.open(f"sqlite:///{home / 'store.db'}", wait_ms=SERVICE_WAIT_MS)
    with closing(sqlite3.connect(home / "store.db")) as other:  # as another process has it open
        other.execute("SELECT count(*) FROM alarms").fetchall()
        store._engine.dispose()
        with read_only_folder(home), pytest.raises(OperationalError, match="readonly"):
            store.raise_alarm("test", "info", "not written", T0)
        assert store.raise_alarm("test", "info", "written", T0)
    store.close()
