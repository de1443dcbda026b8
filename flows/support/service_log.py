"""Write the log of one service: JSON lines, rotated by size, limited in rate; a fault never stops the service.

A line on disk is one JSON object with at least `at` (UTC) and `service`. Text of a service cannot end a line or look
like one: it is a JSON string under `text`. On a full disk, without the folder or the right to write, lines are counted
and dropped, the file is tried again every second, and the next line that fits reports how many are missing.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

MAX_BYTES = 10 * 2**20  # of one file
FILES = 3  # the current one and those before it, .1 the newest
LINES_A_SECOND = 500  # a fresh MLflow database writes 200 in its first second
RETRY_S = 1.0
LONGEST_LINE = 64 * 2**10  # bytes; what is longer is cut into lines of this length


def as_record(service: str, raw: bytes, is_json: bool) -> dict[str, object]:
    """Return one line of output as a record; with `is_json`, a JSON object of the service with its own fields."""
    text = raw.decode(errors="replace").rstrip("\r\n")
    stamp = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "service": service}
    if is_json and text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # not JSON, or nested to harm: text like any other
            found = None
        if isinstance(found, dict):
            return {**stamp, **found, "service": service}
    return {**stamp, "text": text}


def text_of(line: str) -> str:
    """Return the text or message of a stored line, or the line itself if it has neither."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    if not isinstance(found, dict):
        return line
    return str(next((found[name] for name in ("text", "message") if name in found), line))


class ServiceLog:
    """Store the raw output of one service as lines. Never raises OSError, never waits.

    max_bytes       size of one file; FILES of them exist
    lines_a_second  lines beyond this rate are counted and dropped
    """

    def __init__(
        self,
        path: Path,
        service: str,
        is_json: bool = False,
        max_bytes: int = MAX_BYTES,
        lines_a_second: int = LINES_A_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open no file yet: the first line does."""
        self.path, self.service, self.is_json = path, service, is_json
        self.max_bytes, self.lines_a_second, self._clock = max_bytes, lines_a_second, clock
        self.last = ""  # text of the newest line, whether it could be stored or not
        self.lost = 0  # lines not stored since the last one that was, and why
        self._why = ""
        self._rest = b""
        self._fd: int | None = None
        self._size = 0
        self._retry_at = 0.0
        self._second, self._in_second, self._over = 0.0, 0, 0

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they come from the pipe; an incomplete line waits for its rest."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            for start in range(0, len(line) or 1, LONGEST_LINE):
                self._line(line[start : start + LONGEST_LINE])
        while len(self._rest) > LONGEST_LINE:
            self._line(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]

    def flush(self) -> None:
        """Store a last line without an end, and report how many lines the rate limit dropped."""
        if self._rest:
            self._line(self._rest)
            self._rest = b""
        self._report_dropped()

    def write_line(self, text: str) -> None:
        """Store a line of the supervisor's own about this service."""
        self._store(as_record(self.service, text.encode(), is_json=False))

    def close(self) -> None:
        """Store what is left and close the file."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _line(self, raw: bytes) -> None:
        """Store one line, unless it exceeds the rate limit."""
        now = self._clock()
        if now - self._second >= 1.0:
            self._report_dropped()
            self._second, self._in_second = now, 0
        self._in_second += 1
        if self._in_second > self.lines_a_second:
            self._over += 1
            return
        record = as_record(self.service, raw, self.is_json)
        self.last = str(record.get("text") or record.get("message") or "") or self.last
        self._store(record)

    def _report_dropped(self) -> None:
        """Store a line with the number of lines that the rate limit dropped."""
        over, self._over = self._over, 0
        if over:
            self.write_line(f"{over:,} lines dropped: more than {self.lines_a_second:,} in a second")

    def _store(self, record: dict[str, object]) -> None:
        """Write a record, after a line about those lost before it; count it as lost if that fails."""
        if self._fd is None and self._clock() < self._retry_at:
            self.lost += 1
            return
        try:
            self._open()
            if self.lost:
                report = as_record(self.service, f"{self.lost:,} lines lost: {self._why}".encode(), is_json=False)
                self._write(report)
                self.lost = 0
            self._write(record)
        except OSError as error:
            self.lost += 1
            self._why = error.strerror or str(error)
            self._retry_at = self._clock() + RETRY_S
            self._drop_file()

    def _open(self) -> None:
        """Open the file for its owner only, if it is not open."""
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.fchmod(self._fd, 0o600)  # a file of an earlier release may be open to others
            self._size = os.fstat(self._fd).st_size

    def _write(self, record: dict[str, object]) -> None:
        """Append a record, rotating first if it does not fit. Raises OSError, with no half line left in the file."""
        line = json.dumps(record, default=str).encode() + b"\n"  # ASCII: no control character gets through
        if self._size and self._size + len(line) > self.max_bytes:
            self._rotate()
        assert self._fd is not None
        written = os.write(self._fd, line)
        if written < len(line):  # the disk took half a line: remove it
            os.ftruncate(self._fd, self._size)
            raise OSError(28, "No space left on device")
        self._size += written

    def _rotate(self) -> None:
        """Move each file to the next older name and begin a new one; the oldest is lost."""
        for i in range(FILES - 1, 0, -1):
            older = self.path.with_suffix(f".log.{i}")
            newer = self.path if i == 1 else self.path.with_suffix(f".log.{i - 1}")
            if newer.exists():
                newer.replace(older)
        self._drop_file()
        self._open()

    def _drop_file(self) -> None:
        """Close the file, so that the next line opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
