"""The log of a service: what is on disk is JSON lines whatever was written, and a disk that is full stops nobody."""

import errno
import json
import os
import stat

import pytest

from flows.support import service_log
from flows.support.service_log import ServiceLog, text_of


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "mlflow.log"


@pytest.mark.parametrize(
    "evil",
    [
        b'x\r{"at": "2020-01-01", "service": "decision", "text": "all is well"}',
        b"\x1b[2J\x1b[1;31mcleared your screen\x07",
        "next\u2028line\u2029and\u0085more\u009b31m".encode(),
        b"\x00\x08\x7f\xff\xfe broken utf-8",
        b'{"at": "then", "service": "decision"}',
        b'"}\\u000a{"',
    ],
)
def test_text_of_a_service_is_one_line_under_its_own_name_and_brings_no_control_character(path, evil):
    log = ServiceLog(path, "mlflow")
    log.feed(evil + b"\n")
    log.close()
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in raw.rstrip(b"\n"))
    (found,) = lines(path)
    assert (found["service"], set(found)) == ("mlflow", {"at", "service", "text"})
    assert found["text"] == evil.decode(errors="replace")


def test_a_service_that_writes_json_keeps_its_fields_but_not_another_name(path):
    log = ServiceLog(path, "decision", is_json=True)
    log.feed(b'{"at": "t", "level": "error", "message": "a\\nb", "request_id": "r1", "service": "mlflow"}\n')
    log.feed(b'["no object"]\n{"cut": \n{' + b"[" * 5000 + b"\n")
    log.close()
    first, *others = lines(path)
    assert first == {"at": "t", "level": "error", "message": "a\nb", "request_id": "r1", "service": "decision"}
    assert [set(other) for other in others] == [{"at", "service", "text"}] * 3
    assert text_of(path.read_text().splitlines()[0]) == "a\nb"
    assert [text_of(line) for line in ('{"text": ""}', "[1]", "no json")] == ["", "[1]", "no json"]


def test_a_line_comes_in_pieces_and_a_last_one_without_an_end_is_kept(path):
    log = ServiceLog(path, "mlflow")
    for piece in (b"one ", b"line\ntw", b"o\n", b"no end"):
        log.feed(piece)
    log.close()
    assert [line["text"] for line in lines(path)] == ["one line", "two", "no end"]


def test_the_log_is_rotated_while_it_runs_and_never_exceeds_its_files(path):
    log = ServiceLog(path, "mlflow", max_bytes=2_000, lines_a_second=10_000)
    for i in range(200):
        log.feed(f"line {i}\n".encode())
    log.close()
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["mlflow.log", "mlflow.log.1", "mlflow.log.2"]
    assert all(file.stat().st_size <= 2_000 for file in path.parent.iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()] == [0o600] * 3
    assert lines(path)[-1]["text"] == "line 199"


def test_a_flood_is_cut_and_the_log_counts_what_is_missing(path):
    now = [100.0]
    log = ServiceLog(path, "mlflow", lines_a_second=10, clock=lambda: now[0])
    log.feed(b"again\n" * 1_000)
    now[0] += 1.0
    log.feed(b"after\n")
    log.close()
    texts = [line["text"] for line in lines(path)]
    assert texts == ["again"] * 10 + ["990 lines dropped: more than 10 in a second", "after"]


def test_a_line_without_end_takes_no_memory(path):
    log = ServiceLog(path, "mlflow")
    for _ in range(64):
        log.feed(b"x" * service_log.LONGEST_LINE)
    assert len(log._rest) <= service_log.LONGEST_LINE
    log.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_lines_that_do_not_fit_are_counted_and_logging_goes_on_when_they_do(path, monkeypatch, number):
    now = [100.0]
    log = ServiceLog(path, "mlflow", clock=lambda: now[0])
    log.feed(b"before\n")
    real = os.write

    def full(fd, data):
        real(fd, data[:7])  # half a line fits
        if number == errno.ENOSPC:
            return 7
        os.ftruncate(fd, os.fstat(fd).st_size - 7)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", full)
    log.feed(b"lost 1\nlost 2\nlost 3\n")
    assert (log.lost, log.last) == (3, "lost 3")
    monkeypatch.setattr(os, "write", real)
    now[0] += 1.1
    log.feed(b"after\n")
    log.close()
    texts = [line["text"] for line in lines(path)]
    assert texts == ["before", f"3 lines lost: {os.strerror(number)}", "after"]


def test_a_log_folder_that_cannot_be_made_stops_no_service(tmp_path):
    (tmp_path / "logs").write_text("a file")
    log = ServiceLog(tmp_path / "logs" / "mlflow.log", "mlflow")
    log.feed(b"one\ntwo\n")
    log.close()
    assert (log.lost, log.last) == (2, "two")
