"""One supervised service: its process, its output and its record of deaths."""

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import psutil

from flows.support.processes import SERVICE_MARK
from flows.support.service_log import ServiceLog
from pipelines.settings import ROOT

READ_BYTES = 64 * 2**10
PIPE_BYTES = 2**20  # what a service may write while it is not read; the system allows no more without privilege


@dataclass
class Child:
    """Hold one service: its command, its process and its record of deaths; times are monotonic seconds."""

    name: str
    command: str
    port: int | None
    health: str | None  # path on `port`; None = it has no port
    env: dict[str, str]
    log: ServiceLog
    state: Literal["running", "stopping", "clearing", "waiting", "gave up"] = "waiting"
    then: Literal["restart", "stay down", "died"] = "died"  # what follows once its process has ended
    process: subprocess.Popen[bytes] | None = None
    pid: int | None = None
    since: str | None = None
    returncode: int | None = None
    detail: str | None = None
    gave_up: bool = False
    hung: str | None = None  # why it is being killed, where it is
    start_at: float = 0.0  # monotonic, as kill_at: when SIGTERM is followed by SIGKILL
    kill_at: float = 0.0
    signalled: bool = False
    strays: list[psutil.Process] = field(default_factory=list)
    deaths: deque[float] = field(default_factory=deque)
    healthy_since: float | None = None
    failing_since: float | None = None
    fails: int = 0
    was_healthy: bool = False
    steady: bool = False

    def launch(self) -> int:
        """Start the command and return the end of the pipe to read its output from.

        The process inherits that end too: if the supervisor is killed, its next line meets no broken pipe.
        Raises  OSError if the system starts no process
        """
        env = {**os.environ, **self.env, SERVICE_MARK: self.name}
        read, write = os.pipe()
        os.set_blocking(read, False)
        with contextlib.suppress(OSError, AttributeError):  # not on Linux, or too many pipes: the default size
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", self.command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=write,
                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(read,),
            )  # fmt: skip
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        self.pid, self.returncode, self.state, self.detail = self.process.pid, None, "running", None
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        self.healthy_since, self.failing_since, self.fails = None, None, 0
        self.was_healthy = self.steady = False
        self.then, self.hung = "died", None
        return read

    def count_death(self, now: float, window_s: float) -> int:
        """Record a death and return how many there were in the last `window_s` seconds."""
        while self.deaths and now - self.deaths[0] > window_s:
            self.deaths.popleft()
        self.deaths.append(now)
        return len(self.deaths)

    def record_probe(self, alive: bool, now: float) -> None:
        """Record the result of a health probe."""
        if alive:
            self.was_healthy, self.failing_since, self.fails = True, None, 0
            self.healthy_since = self.healthy_since or now
        else:
            self.healthy_since, self.fails = None, self.fails + 1
            self.failing_since = self.failing_since or now

    def entry(self) -> dict[str, object]:
        """Return the entry of this service in the state file."""
        return {
            "pid": self.pid, "port": self.port, "since": self.since, "returncode": self.returncode,
            "state": self.state, "detail": self.detail, "deaths": len(self.deaths),
        }  # fmt: skip


class OutputPipes:
    """Read the output of all services into their logs."""

    def __init__(self) -> None:
        """Start with no pipe."""
        self._selector = selectors.DefaultSelector()

    def add(self, read: int, log: ServiceLog) -> None:
        """Read from this end of a pipe, from now until the last process that could write to it has ended."""
        self._selector.register(read, selectors.EVENT_READ, log)

    def drain(self, wait_s: float) -> None:
        """Read what is in the pipes, waiting up to `wait_s` seconds: a service whose pipe is full would stop."""
        if not self._selector.get_map():
            time.sleep(wait_s)
            return
        for key, _ in self._selector.select(wait_s):
            chunk = b""
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(key.fd, READ_BYTES)
                if not chunk:  # the last process that could write to it has ended
                    self._selector.unregister(key.fd)
                    os.close(key.fd)
            key.data.feed(chunk)


def exit_text(code: int) -> str:
    """Describe how a process ended, from its return code."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def send_signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each process that still exists."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)
