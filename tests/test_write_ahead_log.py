"""SQLite's write-ahead log: by whom it is copied into the file, and that it begins again."""

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from support.records import DECISION

from pipelines.settings import Settings
from pipelines.store import DecisionRecord, Store, engine
from serving.service.alarm_queue import AlarmQueue
from serving.service.store_monitor import StoreMonitor


def records(first, n):
    return [DecisionRecord(replace(DECISION, id=f"d{first + i}"), b"\x00\x01", b"\x02") for i in range(n)]


def test_a_log_that_no_commit_copies_is_copied_during_a_write_and_begins_again(tmp_path, monkeypatch):
    limit = 64 * engine.PAGE_BYTES
    monkeypatch.setattr(engine, "LOG_BYTES", limit)
    file = tmp_path / "store.db"
    store = Store.open(f"sqlite:///{file}", log_bytes=engine.COPIED_LOG_BYTES)
    log, n = Path(f"{file}-wal"), 0
    while log.stat().st_size <= 2 * limit:
        store.add_decisions(records(n, 20))
        n += 20
    before = file.stat().st_size
    with store.writing() as connection:
        connection.exec_driver_sql("INSERT INTO record_parts VALUES (x'00', x'00')")
        store.copy_log()  # it waits for no writer, and no writer for it
    assert file.stat().st_size > before
    store.copy_log()
    store.add_decisions(records(n, 1))
    assert log.stat().st_size == pytest.approx(limit, abs=2 * engine.PAGE_BYTES)  # cut, and written from its beginning
    assert (store.log_is_long, store.count_decisions()[0]) == (False, n + 1)
    store.close()


def test_the_monitor_copies_a_long_log_alone_once_at_a_time_and_reports_what_fails(tmp_path, monkeypatch):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}", log_bytes=engine.COPIED_LOG_BYTES)
    monitor = StoreMonitor(store, None, Settings(home=tmp_path), AlarmQueue())
    began, may_end, copied = threading.Event(), threading.Event(), []

    def copy_log():
        copied.append(None)
        began.set()
        assert may_end.wait(30.0)
        raise OperationalError("PRAGMA", {}, sqlite3.OperationalError("disk I/O error"))

    monkeypatch.setattr(store, "copy_log", copy_log)
    monitor.start_log_copy()
    assert copied == []  # the log is short
    monkeypatch.setattr(engine, "LOG_BYTES", 0)
    monitor.start_log_copy()
    assert began.wait(30.0)
    monitor.start_log_copy()
    assert (len(copied), monitor.fault) == (1, None)
    may_end.set()
    monitor._copying.join(30.0)
    assert "disk I/O error" in monitor.fault
    store.close()
