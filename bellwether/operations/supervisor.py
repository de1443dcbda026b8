"""The supervisor process of one home: starts services, drains their output, restarts what dies or hangs, says so.

One thread does it, in steps of STEP_S; it waits for nothing. Two more ask for health and store alarms. Whatever cannot
be written (a full disk) is counted or tried again; no child ever waits for a reader.

Callers talk to it through `<home>/run`: it reads orders from `orders/*.json`, removes each once it is carried out, and
keeps `state.json` in step. SIGTERM stops every service, workers first, and ends it.
"""

import contextlib
import fcntl
import functools
import http.client
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

from bellwether.operations.alarm_outbox import AlarmOutbox
from flows.support import processes
from flows.support.service_log import ServiceLog
from pipelines import disk
from pipelines.bootstrap import bootstrap
from pipelines.permissions import restrict
from pipelines.settings import ROOT, Settings

STEP_S = 0.25
READ_BYTES = 64 * 2**10
PIPE_BYTES = 2**20  # what a service may write while nobody reads; no more is allowed to all users
JSON_LOGS = ("decision", "models")  # they write JSON lines themselves; text of all others is wrapped
PROBE_S = 5.0  # a service that needs longer for its health check has not answered
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own services are behind no proxy
CLEAR_S = 3.0  # what a dead or hung service left behind is killed after this


@dataclass(frozen=True)
class Policy:
    """How patient the supervisor is. Seconds, except `deaths`."""

    first_delay_s: float = 0.5  # before the first restart; it doubles with each death in the window
    longest_delay_s: float = 30.0
    window_s: float = 300.0
    deaths: int = 8  # so many in the window, and it gives up: about a minute of trying
    steady_s: float = 30.0  # back up for this long, and its alarms are cleared
    stop_s: float = processes.STOP_SECONDS
    probe_every_s: float = 10.0
    disk_every_s: float = 60.0
    disk_sample_s: float = 1_800.0  # between two points of the forecast

    def delay_s(self, deaths: int) -> float:
        return float(min(self.longest_delay_s, self.first_delay_s * 2.0 ** (deaths - 1)))


@dataclass
class Child:
    """One service: its command, and what became of it."""

    name: str
    command: str
    port: int | None
    health: str | None  # path on `port`; None = it has no port
    env: dict[str, str]
    log: ServiceLog
    state: Literal["running", "stopping", "clearing", "waiting", "gave up"] = "waiting"
    then: Literal["restart", "stay down", "died"] = "died"  # what follows once it has ended
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


class Supervisor:
    def __init__(self, settings: Settings, policy: Policy | None = None) -> None:
        self.settings, self.policy = settings, policy or Policy()
        self.children: dict[str, Child] = {}
        self.stop_requested = False  # set by a signal handler, which must not touch anything else
        self.leaving = False
        self.received_order = False
        self.log = ServiceLog(processes.log_file(settings, "supervisor"), "supervisor")
        self.outbox = AlarmOutbox(settings, self._say)
        self.selector = selectors.DefaultSelector()
        self.probed: queue.SimpleQueue[tuple[str, int, bool]] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()  # lines of other threads
        self._written = ""
        self._done: set[str] = set()  # orders carried out whose file could not be removed
        self._disk_due, self._disk_level = 0.0, "unknown"
        self._samples: list[tuple[float, int]] = processes.disk_samples(settings)
        threading.Thread(target=self._probe_for_ever, name="health", daemon=True).start()

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM has stopped everything, or an order has stopped the last service."""
        while not self.step():
            pass
        self.outbox.close(timeout_s=3.0)
        self.log.close()

    def step(self) -> bool:
        """Drain what services wrote and do what is due; True once there is nothing left to do."""
        parts: list[Callable[[], None]] = [
            self._leave_if_told,
            self._take_orders,
            self._take_probes,
            self._look_at_disk,
        ]
        parts += [functools.partial(self._look_at, child) for child in self.children.values()]
        for part in [*parts, self._write_state, self._pass_on_lines, self._drain]:
            try:
                part()
            except Exception as error:  # noqa: BLE001 - a supervisor that ends helps nobody: say it, go on
                self.log.write_line(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return (self.leaving or self.received_order) and not self.children

    def _leave_if_told(self) -> None:
        if self.stop_requested and not self.leaving:
            self.leaving = True
            self.stop(list(self.children))

    def _say(self, text: str) -> None:
        self._said.put(text)

    def _pass_on_lines(self) -> None:
        while not self._said.empty():
            self.log.write_line(self._said.get())

    # ---- orders ---------------------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        for file in sorted(processes.orders_folder(self.settings).glob("*.json")):
            if file.name in self._done:
                continue
            try:
                order = json.loads(file.read_text())
            except (OSError, ValueError) as error:
                self.log.write_line(f"{file} is no order: {error}")
                order = {}
            try:
                if not self.leaving:
                    self._carry_out(order)
            finally:
                self._write_state()  # who gave the order finds its effect there
                try:
                    file.unlink()
                except OSError:  # a file system that became read-only: carried out all the same
                    self._done.add(file.name)

    def _carry_out(self, order: dict[str, Any]) -> None:
        for name, told in order.get("start", {}).items():
            self.start(name, told["command"], told["port"], told["health"], order["env"])
        for name in order.get("restart", []):
            if name in self.children:
                self.children[name].env = order["env"]
        self.stop(order.get("restart", []), then="restart")
        self.stop(order.get("stop", []))
        self.received_order = self.received_order or bool(order)

    def start(self, name: str, command: str, port: int | None, health: str | None, env: dict[str, str]) -> None:
        """Start a service now, with a clean record; one that runs is left alone."""
        child = self.children.get(name)
        if child is not None and child.process is not None:
            child.then = "restart" if child.state == "stopping" else child.then
            return
        log = child.log if child else ServiceLog(processes.log_file(self.settings, name), name, name in JSON_LOGS)
        self.children[name] = Child(name, command, port, health, env, log)
        self._clear_strays(self.children[name], "restart")

    def stop(self, names: Iterable[str], then: Literal["restart", "stay down"] = "stay down") -> None:
        for name in names:
            child = self.children.get(name)
            if child is None:
                continue
            child.then = then
            if child.process is not None:
                child.state, child.signalled = "stopping", False
            elif child.state != "clearing":
                self._clear_strays(child, then)

    # ---- one service ----------------------------------------------------------------------------------------------

    def _look_at(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is not None and (code := child.process.poll()) is not None:
            self._ended(child, code, now)
        if child.state == "stopping":
            self._press(child, now)
        elif child.state == "clearing":
            child.strays = [process for process in child.strays if processes.is_alive(process)]
            if not child.strays:
                self._cleared(child, now)
            elif now >= child.kill_at:
                _signal(child.strays, signal.SIGKILL)
        elif child.state == "waiting" and now >= child.start_at:
            self._spawn(child, now)
        elif child.state == "running":
            self._judge(child, now)

    def _spawn(self, child: Child, now: float) -> None:
        """Start the command. It keeps the reading end too: were we killed, its next line must not be a broken pipe."""
        env = {**os.environ, **child.env, processes.SERVICE_MARK: child.name}
        read, write = os.pipe()
        os.set_blocking(read, False)
        with contextlib.suppress(OSError, AttributeError):  # not on Linux, or this user's pipes are too many: as it is
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            child.process = subprocess.Popen(
                ["/bin/sh", "-c", child.command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=write,
                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(read,),
            )  # fmt: skip
        except OSError as error:  # no memory for a process, say
            os.close(read)
            child.log.write_line(f"cannot be started: {error}")
            self._died(child, f"could not be started ({error.strerror})", now)
            return
        finally:
            os.close(write)
        child.pid, child.returncode, child.state, child.detail = child.process.pid, None, "running", None
        child.since = datetime.now(UTC).isoformat(timespec="seconds")
        child.healthy_since, child.failing_since, child.fails = None, None, 0
        child.was_healthy = child.steady = False
        child.then, child.hung = "died", None
        self.selector.register(read, selectors.EVENT_READ, child.log)
        self.log.write_line(f"{child.name} started as process {child.pid}")

    def _ended(self, child: Child, code: int, now: float) -> None:
        self._drain(0.0)
        child.log.flush()
        child.process, child.pid, child.returncode = None, None, code
        how = child.hung or _how(code)
        self.log.write_line(f"{child.name} {how}")
        if child.then == "died":
            self._died(child, how, now)
        self._clear_strays(child, child.then)

    def _died(self, child: Child, how: str, now: float) -> None:
        """Count a death and decide whether and when it is started again."""
        while child.deaths and now - child.deaths[0] > self.policy.window_s:
            child.deaths.popleft()
        child.deaths.append(now)
        count, last = len(child.deaths), f" Last line: {child.log.last[:200]}" if child.log.last else ""
        if self._disk_level != "stop" and count >= self.policy.deaths:  # a full disk empties again: then we go on
            child.state, child.gave_up = "gave up", True
            child.detail = (
                f"{how}; gave up after {count} deaths in {self.policy.window_s:.0f} s. Fix what "
                f"{child.log.path} says, then run `bellwether up`"
            )
            self.outbox.raise_alarm("service_gave_up", "critical", f"{child.name}: {child.detail}.{last}")
            return
        delay_s = self.policy.delay_s(count)
        child.state, child.start_at = "waiting", now + delay_s
        child.detail = f"{how}; starts again after {delay_s:g} s"
        if child.hung is None:  # else its alarm was raised when it was killed
            self.outbox.raise_alarm("service_died", "high", f"{child.name}: {child.detail}.{last}")

    def _clear_strays(self, child: Child, then: Literal["restart", "stay down", "died"]) -> None:
        """End what a server left behind (workers of a killed parent hold its port) before anything else happens.

        A flow run goes on without the process that started it, and ends by itself: it is ended only to stay down.
        """
        ended = child.port is not None or then == "stay down"
        child.strays = processes.home_processes(self.settings, child.name) if ended else []
        _signal(child.strays, signal.SIGTERM)
        child.state, child.then, child.kill_at = "clearing", then, time.monotonic() + CLEAR_S

    def _cleared(self, child: Child, now: float) -> None:
        if child.then == "stay down":
            child.log.close()
            del self.children[child.name]
        elif child.then == "died" and child.gave_up:
            child.state = "gave up"
        else:
            child.state, child.start_at = "waiting", child.start_at if child.then == "died" else now

    def _press(self, child: Child, now: float) -> None:
        """SIGTERM to a service that has to stop, servers after the workers that talk to them; later SIGKILL."""
        if not child.signalled:
            workers = [c for c in self.children.values() if c.name in processes.WORKERS and c.state == "stopping"]
            if workers and child.name not in processes.WORKERS:
                return
            assert child.process is not None
            child.process.terminate()
            child.signalled, child.kill_at = True, now + self.policy.stop_s
        elif now >= child.kill_at:
            assert child.process is not None
            child.process.kill()
            _signal(processes.home_processes(self.settings, child.name), signal.SIGKILL)

    # ---- health ---------------------------------------------------------------------------------------------------

    def _judge(self, child: Child, now: float) -> None:
        limit_s = self.settings.hang_seconds
        if child.healthy_since is not None and not child.steady and now - child.healthy_since >= self.policy.steady_s:
            child.steady = True
            self.outbox.clear(f"{child.name}: ", "service_died", "service_hung", "service_gave_up")
        if not (limit_s and child.was_healthy and child.failing_since is not None and child.fails >= 3):
            return
        if now - child.failing_since >= limit_s:
            self._hung(child, now - child.failing_since, now)

    def _hung(self, child: Child, silent_s: float, now: float) -> None:
        assert child.process is not None
        child.hung = f"gave no sign of life for {silent_s:.0f} s"
        self.outbox.raise_alarm("service_hung", "high", f"{child.name}: {child.hung}; killed and started again.")
        child.process.terminate()
        child.state, child.signalled, child.kill_at, child.then = "stopping", True, now + CLEAR_S, "died"

    def _take_probes(self) -> None:
        now = time.monotonic()
        while not self.probed.empty():
            name, pid, alive = self.probed.get()
            child = self.children.get(name)
            if child is None or child.pid != pid:
                continue
            if alive:
                child.was_healthy, child.failing_since, child.fails = True, None, 0
                child.healthy_since = child.healthy_since or now
            else:
                child.healthy_since, child.fails = None, child.fails + 1
                child.failing_since = child.failing_since or now

    def _probe_for_ever(self) -> None:
        """Ask each running service for a sign of life, in turn. In a thread: a hung one keeps nobody waiting."""
        limit_s = self.settings.hang_seconds
        while True:
            time.sleep(min(self.policy.probe_every_s, limit_s / 6 if limit_s else self.policy.probe_every_s))
            for child in list(self.children.values()):
                if (pid := child.pid) is not None and child.state == "running":
                    self.probed.put((child.name, pid, _gives_sign(self.settings.host, child.port, child.health, pid)))

    # ---- disk -----------------------------------------------------------------------------------------------------

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now < self._disk_due:
            return
        self._disk_due = now + self.policy.disk_every_s
        warn_bytes, stop_bytes = self.settings.disk_warn_mb * disk.MB, self.settings.disk_stop_mb * disk.MB
        try:
            found = disk.check_space(self.settings.home, warn_bytes, stop_bytes)
        except OSError as error:
            self.log.write_line(f"{self.settings.home} cannot be looked at: {error}")
            return
        before, level = self._disk_level, found.level
        # close to a limit it would be raised and cleared every minute: a tenth more has to be free than at the fall
        if before == "stop" and level == "warn" and found.free_bytes < 1.1 * stop_bytes:
            level = "stop"
        if before in ("warn", "stop") and level == "ok" and found.free_bytes < 1.1 * warn_bytes:
            level = "warn"
        if level != before:
            about = f"{self.settings.home}: "
            self.outbox.clear(about, "disk_low", "disk_full")
            if level == "stop":
                self.outbox.raise_alarm(
                    "disk_full", "critical", f"{about}{found.detail}; no position is opened. Free some."
                )
            elif level == "warn":
                self.outbox.raise_alarm("disk_low", "high", f"{about}{found.detail}. Free some before it is full.")
            if before == "stop":
                self._forgive()
        self._disk_level = level
        self._sample(time.time(), found.free_bytes)

    def _forgive(self) -> None:
        """Room is back: what died for lack of it starts again with a clean record."""
        for child in self.children.values():
            child.deaths.clear()
            child.start_at = 0.0

    def _sample(self, at_s: float, free_bytes: int) -> None:
        known = [s for s in self._samples if at_s - disk.DAY_S <= s[0] <= at_s]
        if known and at_s - known[-1][0] < self.policy.disk_sample_s:
            return
        self._samples = [*known, (at_s, free_bytes)]
        with contextlib.suppress(OSError):  # the disk is full: the next sample tries again
            processes.write_atomic(processes.disk_file(self.settings), json.dumps(self._samples))

    # ---- output and state -----------------------------------------------------------------------------------------

    def _drain(self, wait_s: float | None = None) -> None:
        """Read what is in the pipes, waiting up to a step. Always: a service whose pipe is full would stand still."""
        wait_s = STEP_S if wait_s is None else wait_s
        if not self.selector.get_map():
            time.sleep(wait_s)
            return
        for key, _ in self.selector.select(wait_s):
            chunk = b""
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(key.fd, READ_BYTES)
                if not chunk:  # the last process that could write to it has ended
                    self.selector.unregister(key.fd)
                    os.close(key.fd)
            key.data.feed(chunk)

    def _write_state(self) -> None:
        entries = {
            c.name: {
                "pid": c.pid, "port": c.port, "since": c.since, "returncode": c.returncode, "state": c.state,
                "detail": c.detail, "deaths": len(c.deaths),
            }
            for c in self.children.values()
        }  # fmt: skip
        text = json.dumps(entries, indent=1)
        if text != self._written:
            with contextlib.suppress(OSError):  # the disk is full: tried again at the next step
                processes.write_atomic(processes.state_file(self.settings), text)
                self._written = text


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(number)


def _gives_sign(host: str, port: int | None, health: str | None, pid: int) -> bool:
    """True if the process is not stopped and, where it has a port, answers there with any status at all."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return False
    except psutil.Error:
        return False
    if port is None:
        return True
    try:
        with _DIRECT.open(f"http://{host}:{port}{health or '/'}", timeout=PROBE_S):
            return True
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True  # it refuses us, is not ready, or speaks something else: it lives
    except (OSError, ValueError):
        return False


def main() -> None:
    """The detached process: `python -m bellwether.operations.supervisor HOME`."""
    if os.fork():  # the caller waits for this half only, and so leaves no zombie behind
        os._exit(0)
    bootstrap()
    restrict()
    watcher = Supervisor(Settings(home=Path(sys.argv[1])))

    def leave(*_: object) -> None:
        watcher.stop_requested = True

    for ignored in (signal.SIGHUP, signal.SIGINT):  # a handler, not SIG_IGN: services would inherit that
        signal.signal(ignored, lambda *_: None)
    signal.signal(signal.SIGTERM, leave)
    watcher.run()


if __name__ == "__main__":
    main()
