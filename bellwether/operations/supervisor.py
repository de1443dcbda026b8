"""The supervisor process of one home: start services, drain their output, restart what dies or hangs, raise alarms.

One thread does all of it, in steps of STEP_S, and never blocks. Two more threads probe health and store alarms. What
cannot be written (a full disk) is counted or tried again; no child ever waits for a reader.

Callers control it through `<home>/run`: it reads orders from `orders/*.json`, removes each once it is carried out, and
writes every change of state to `state.json`. SIGTERM stops every service, workers first, and ends it.
"""

import contextlib
import functools
import json
import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bellwether.operations.alarm_outbox import AlarmOutbox
from bellwether.operations.child import Child, OutputPipes, exit_text, send_signal
from bellwether.operations.orders import Order, OrderInbox
from bellwether.operations.supervisor_watch import CertificateWatch, DiskWatch, HealthProbes, Target
from flows.support import processes
from flows.support.service_log import ServiceLog
from flows.support.service_table import stop_rank
from pipelines.bootstrap import bootstrap
from pipelines.permissions import restrict
from pipelines.settings import Settings

STEP_S = 0.25
JSON_LOGS = ("decision", "models")  # they write JSON lines themselves; text of all others is wrapped
CLEAR_S = 3.0  # what a dead or hung service left behind is killed after this


@dataclass(frozen=True)
class Policy:
    """Set how long the supervisor waits, in seconds, and after how many `deaths` it gives up."""

    first_delay_s: float = 0.5  # before the first restart; it doubles with each death in the window
    longest_delay_s: float = 30.0
    window_s: float = 300.0
    deaths: int = 8  # so many in the window, and it gives up: about a minute of trying
    steady_s: float = 30.0  # back up for this long, and its alarms are cleared
    stop_s: float = processes.STOP_SECONDS
    probe_every_s: float = 10.0
    disk_every_s: float = 60.0
    certificate_every_s: float = 600.0
    disk_sample_s: float = 1_800.0  # between two points of the forecast

    def delay_s(self, deaths: int) -> float:
        """Return the seconds before the restart after so many deaths in the window."""
        return float(min(self.longest_delay_s, self.first_delay_s * 2.0 ** (deaths - 1)))


class Supervisor:
    """Run the services of one home; `step` does what is due and never blocks longer than STEP_S seconds."""

    def __init__(self, settings: Settings, policy: Policy | None = None) -> None:
        """Start with no services, and the threads for health and alarms."""
        self.settings, self.policy = settings, policy or Policy()
        self.children: dict[str, Child] = {}
        self.stop_requested = False  # set by a signal handler, which must not touch anything else
        self.stopping = False
        self.received_order = False
        self.log = ServiceLog(processes.log_file(settings, "supervisor"), "supervisor")
        self.pipes = OutputPipes()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()  # of other threads, for the log
        self._written = ""
        self.orders = OrderInbox(processes.orders_folder(settings), self.log.write_line)
        self.outbox = AlarmOutbox(settings, self._lines.put)
        every_s, limit_s = self.policy.probe_every_s, settings.hang_seconds
        self.probes = HealthProbes(settings, min(every_s, limit_s / 6 if limit_s else every_s), self._targets)
        self.disk = DiskWatch(
            settings, self.outbox, self.policy.disk_every_s, self.policy.disk_sample_s, self.log.write_line
        )
        self.certificate = CertificateWatch(settings, self.outbox, self.policy.certificate_every_s, self.log.write_line)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Step until SIGTERM has stopped everything, or an order has stopped the last service."""
        while not self.step():
            pass
        self.outbox.close(timeout_s=3.0)
        self.log.close()

    def step(self) -> bool:
        """Drain what services wrote and do what is due; return True once there is nothing left to do."""
        for part in self._parts():
            try:
                part()
            except Exception as error:  # noqa: BLE001 - a supervisor that ends restarts nothing: log the error, go on
                self.log.write_line(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return (self.stopping or self.received_order) and not self.children

    def _parts(self) -> Iterator[Callable[[], None]]:
        """Yield what a step does, in order; services after the orders, which may replace one about to start."""
        yield from (self._stop_if_requested, self._take_orders, self._take_probes, self._check_disk)
        yield self.certificate.check
        yield from [functools.partial(self._advance, child) for child in self.children.values()]
        yield from (self._write_state, self._write_lines, self._drain)

    def _stop_if_requested(self) -> None:
        """Stop every service once, after SIGTERM."""
        if self.stop_requested and not self.stopping:
            self.stopping = True
            self.stop(list(self.children))

    def _drain(self) -> None:
        """Read the output of all services, for the length of a step."""
        self.pipes.drain(STEP_S)

    def _write_lines(self) -> None:
        """Write the lines that other threads queued to the log."""
        while not self._lines.empty():
            self.log.write_line(self._lines.get())

    def _check_disk(self) -> None:
        """Check the room on the disk; once it is back, what died for lack of it starts again with a clean record."""
        if self.disk.check():
            for child in self.children.values():
                child.deaths.clear()
                child.start_at = 0.0

    # ---- orders ---------------------------------------------------------------------------------------------------

    def _take_orders(self) -> None:
        """Carry out each order in its folder, oldest first, and remove its file."""
        for file, order in self.orders.pending():
            try:
                if not self.stopping:
                    self._carry_out(order)
            finally:
                self._write_state()  # the caller finds the effect of its order there
                self.orders.remove(file)

    def _carry_out(self, order: Order) -> None:
        """Execute an order; its `env` replaces that of the services it restarts."""
        for name, service in order.get("start", {}).items():
            self.start(name, service["command"], service["port"], service["health"], order["env"])
        for name in order.get("restart", []):
            if name in self.children:
                self.children[name].env = order["env"]
        self.stop(order.get("restart", []), then="restart")
        self.stop(order.get("stop", []))
        self.received_order = self.received_order or bool(order)

    def start(self, name: str, command: str, port: int | None, health: str | None, env: dict[str, str]) -> None:
        """Start a service now, with a clean record; leave one that runs as it is."""
        child = self.children.get(name)
        if child is not None and child.process is not None:
            child.then = "restart" if child.state == "stopping" else child.then
            return
        log = child.log if child else ServiceLog(processes.log_file(self.settings, name), name, name in JSON_LOGS)
        self.children[name] = Child(name, command, port, health, env, log)
        self._clear_strays(self.children[name], "restart")

    def stop(self, names: Iterable[str], then: Literal["restart", "stay down"] = "stay down") -> None:
        """Begin to stop services; `then` is what follows once they have ended."""
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

    def _advance(self, child: Child) -> None:
        """Do what is due for one service in its present state."""
        now = time.monotonic()
        if child.process is not None and (code := child.process.poll()) is not None:
            self._ended(child, code, now)
        if child.state == "stopping":
            self._signal_stop(child, now)
        elif child.state == "clearing":
            child.strays = [process for process in child.strays if processes.is_alive(process)]
            if not child.strays:
                self._cleared(child, now)
            elif now >= child.kill_at:
                send_signal(child.strays, signal.SIGKILL)
        elif child.state == "waiting" and now >= child.start_at:
            self._spawn(child, now)
        elif child.state == "running":
            self._check_health(child, now)

    def _spawn(self, child: Child, now: float) -> None:
        """Start the process of a service; a start that fails counts as a death."""
        try:
            read = child.launch()
        except OSError as error:  # no memory for a process, say
            child.log.write_line(f"cannot be started: {error}")
            self._died(child, f"could not be started ({error.strerror})", now)
            return
        self.pipes.add(read, child.log)
        self.log.write_line(f"{child.name} started as process {child.pid}")

    def _ended(self, child: Child, code: int, now: float) -> None:
        """Record the end of a process, and begin what follows."""
        self.pipes.drain(0.0)
        child.log.flush()
        child.process, child.pid, child.returncode = None, None, code
        how = child.hung or exit_text(code)
        self.log.write_line(f"{child.name} {how}")
        if child.then == "died":
            self._died(child, how, now)
        self._clear_strays(child, child.then)

    def _died(self, child: Child, how: str, now: float) -> None:
        """Count a death and decide whether and when it is started again."""
        count = child.count_death(now, self.policy.window_s)
        last = f" Last line: {child.log.last[:200]}" if child.log.last else ""
        if self.disk.level != "stop" and count >= self.policy.deaths:  # a full disk empties again: then we go on
            child.state, child.gave_up = "gave up", True
            child.detail = (
                f"{how}; gave up after {count} deaths in {self.policy.window_s:.0f} s. Fix the "
                f"cause shown in {child.log.path}, then run `bellwether up`"
            )
            self.outbox.raise_alarm("service_gave_up", "critical", f"{child.name}: {child.detail}.{last}")
            return
        delay_s = self.policy.delay_s(count)
        child.state, child.start_at = "waiting", now + delay_s
        child.detail = f"{how}; starts again after {delay_s:g} s"
        if child.hung is None:  # else its alarm was raised when it was killed
            self.outbox.raise_alarm("service_died", "high", f"{child.name}: {child.detail}.{last}")

    def _clear_strays(self, child: Child, then: Literal["restart", "stay down", "died"]) -> None:
        """End what a server left behind, since workers of a killed parent hold its port.

        A flow run goes on without the process that started it, and ends by itself: it is ended only to stay down.
        """
        ended = child.port is not None or then == "stay down"
        child.strays = processes.home_processes(self.settings, child.name) if ended else []
        send_signal(child.strays, signal.SIGTERM)
        child.state, child.then, child.kill_at = "clearing", then, time.monotonic() + CLEAR_S

    def _cleared(self, child: Child, now: float) -> None:
        """Begin what follows once nothing of a service is left."""
        if child.then == "stay down":
            child.log.close()
            del self.children[child.name]
        elif child.then == "died" and child.gave_up:
            child.state = "gave up"
        else:
            child.state, child.start_at = "waiting", child.start_at if child.then == "died" else now

    def _signal_stop(self, child: Child, now: float) -> None:
        """Send SIGTERM to a service that must stop, servers after the workers that use them; later SIGKILL."""
        if not child.signalled:
            ranks = [stop_rank(c.name) for c in self.children.values() if c.state == "stopping"]
            if stop_rank(child.name) > min(ranks):
                return
            assert child.process is not None
            child.process.terminate()
            child.signalled, child.kill_at = True, now + self.policy.stop_s
        elif now >= child.kill_at:
            assert child.process is not None
            child.process.kill()
            send_signal(processes.home_processes(self.settings, child.name), signal.SIGKILL)

    # ---- health ---------------------------------------------------------------------------------------------------

    def _check_health(self, child: Child, now: float) -> None:
        """Clear the alarms of a service that stays healthy; kill one that was healthy and hangs."""
        limit_s = self.settings.hang_seconds
        if child.healthy_since is not None and not child.steady and now - child.healthy_since >= self.policy.steady_s:
            child.steady = True
            self.outbox.clear(f"{child.name}: ", "service_died", "service_hung", "service_gave_up")
        if not (limit_s and child.was_healthy and child.failing_since is not None and child.fails >= 3):
            return
        if now - child.failing_since >= limit_s:
            self._kill_hung(child, now - child.failing_since, now)

    def _kill_hung(self, child: Child, silent_s: float, now: float) -> None:
        """Terminate a service that has not answered for `silent_s` seconds, and raise an alarm."""
        assert child.process is not None
        child.hung = f"gave no sign of life for {silent_s:.0f} s"
        self.outbox.raise_alarm("service_hung", "high", f"{child.name}: {child.hung}; killed and started again.")
        child.process.terminate()
        child.state, child.signalled, child.kill_at, child.then = "stopping", True, now + CLEAR_S, "died"

    def _take_probes(self) -> None:
        """Record the results of the health probes."""
        now = time.monotonic()
        for target, alive in self.probes.take():
            child = self.children.get(target.name)
            if child is not None and child.pid == target.pid:
                child.record_probe(alive, now)

    def _targets(self) -> list[Target]:
        """Return what to probe; called from the thread of the probes."""
        children = list(self.children.values())
        return [Target(c.name, c.pid, c.port, c.health) for c in children if c.pid is not None and c.state == "running"]

    # ---- output and state -----------------------------------------------------------------------------------------

    def _write_state(self) -> None:
        """Write the state file if anything changed."""
        text = json.dumps({child.name: child.entry() for child in self.children.values()}, indent=1)
        if text != self._written:
            with contextlib.suppress(OSError):  # the disk is full: tried again at the next step
                processes.write_atomic(processes.state_file(self.settings), text)
                self._written = text


def main() -> None:
    """Run a supervisor in a detached process: `python -m bellwether.operations.supervisor HOME`."""
    if os.fork():  # the caller waits for this half only, so no zombie remains
        os._exit(0)
    bootstrap()
    restrict()
    supervisor = Supervisor(Settings(home=Path(sys.argv[1])))

    def stop(*_: object) -> None:
        """Request the stop; a signal handler must not touch anything else."""
        supervisor.stop_requested = True

    for ignored in (signal.SIGHUP, signal.SIGINT):  # a handler, not SIG_IGN: services would inherit that
        signal.signal(ignored, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    supervisor.run()


if __name__ == "__main__":
    main()
