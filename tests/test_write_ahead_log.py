"""SQLite's write-ahead log: by whom it is copied into the file, and that it begins again."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.records import DECISION

from pipelines.store import DecisionRecord, Store, engine


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
    copied = file.stat().st_mtime_ns
    store.copy_log()  # short enough
    assert (file.stat().st_mtime_ns, store.count_decisions()[0]) == (copied, n + 1)
    store.close()
