"""What the supervisor watches next to its children's exit codes: signs of life, and the room on the disk."""

import contextlib
import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bellwether.operations.alarm_outbox import AlarmOutbox
from flows.support import processes, stores
from flows.support.service_table import POSTGRESQL, TLS
from pipelines import disk
from pipelines.contracts import DAY_S
from pipelines.settings import Settings

WARN_DAYS = 21.0  # before a certificate ends; Let's Encrypt renews 30 days before
PROBE_S = 5.0  # a service that needs longer for its health check has not answered
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # our own services are behind no proxy


@dataclass(frozen=True, slots=True)
class Target:
    """Name a running process to probe: its pid, and its port and health path (or protocol) if it listens."""

    name: str
    pid: int
    port: int | None
    health: str | None


class HealthProbes:
    """Probe every running service in turn, in a thread of its own: one that hangs delays nothing else."""

    def __init__(self, settings: Settings, every_s: float, targets: Callable[[], Iterable[Target]]) -> None:
        """Start the thread; it probes all `targets` every `every_s` seconds."""
        self._settings, self._every_s, self._targets = settings, every_s, targets
        self._results: queue.SimpleQueue[tuple[Target, bool]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def take(self) -> list[tuple[Target, bool]]:
        """Return the results since the last call, oldest first: a target, and whether it is alive."""
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def _run(self) -> None:
        """Probe until the process ends."""
        while True:
            time.sleep(self._every_s)
            for target in self._targets():
                self._results.put((target, is_responsive(self._settings, target)))


def is_responsive(settings: Settings, target: Target) -> bool:
    """Return True if the process is not stopped and, where it has a port, answers there with any status at all."""
    try:
        if psutil.Process(target.pid).status() == psutil.STATUS_STOPPED:
            return False
    except psutil.Error:
        return False
    if target.port is None:
        return True
    if target.health in (POSTGRESQL, TLS):
        return stores.accepts(settings, target.health, target.port, PROBE_S)
    try:
        with _DIRECT.open(f"http://{settings.host}:{target.port}{target.health or '/'}", timeout=PROBE_S):
            return True
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True  # it refuses us, is not ready, or uses another protocol: it lives
    except (OSError, ValueError):
        return False


class DiskWatch:
    """Watch the free room of a home: raise and clear its alarms, and record a sample of it for the forecast.

    every_s   seconds between two checks
    sample_s  seconds between two samples
    log       receives a line if the disk cannot be checked
    """

    def __init__(
        self, settings: Settings, outbox: AlarmOutbox, every_s: float, sample_s: float, log: Callable[[str], None]
    ) -> None:
        """Take up the samples of an earlier supervisor."""
        self._settings, self._outbox, self._log = settings, outbox, log
        self._every_s, self._sample_s, self._due = every_s, sample_s, 0.0
        self._samples = processes.disk_samples(settings)
        self.level = "unknown"

    def check(self) -> bool:
        """Check the disk if it is time; return True if it was full and is not any longer."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self._every_s
        warn_bytes, stop_bytes = self._settings.disk_warn_mb * disk.MB, self._settings.disk_stop_mb * disk.MB
        try:
            found = disk.check_space(self._settings.home, warn_bytes, stop_bytes)
        except OSError as error:
            self._log(f"{self._settings.home} cannot be checked: {error}")
            return False
        before, level = self.level, found.level
        # close to a limit it would be raised and cleared every minute: a tenth more has to be free than at the fall
        if before == "stop" and level == "warn" and found.free_bytes < 1.1 * stop_bytes:
            level = "stop"
        if before in ("warn", "stop") and level == "ok" and found.free_bytes < 1.1 * warn_bytes:
            level = "warn"
        if level != before:
            self._replace_alarm(level, found.detail)
        self.level = level
        self._sample(time.time(), found.free_bytes)
        return before == "stop" != level

    def _replace_alarm(self, level: str, detail: str) -> None:
        """Clear the alarm of the level before, and raise that of this level."""
        about = f"{self._settings.home}: "
        self._outbox.clear(about, "disk_low", "disk_full")
        if level == "stop":
            self._outbox.raise_alarm("disk_full", "critical", f"{about}{detail}; no position is opened. Free some.")
        elif level == "warn":
            self._outbox.raise_alarm("disk_low", "high", f"{about}{detail}. Free some before it is full.")

    def _sample(self, at_s: float, free_bytes: int) -> None:
        """Record the free bytes at a moment (epoch seconds), if the newest sample is old enough."""
        known = [s for s in self._samples if at_s - DAY_S <= s[0] <= at_s]
        if known and at_s - known[-1][0] < self._sample_s:
            return
        self._samples = [*known, (at_s, free_bytes)]
        with contextlib.suppress(OSError):  # the disk is full: the next sample tries again
            processes.write_atomic(processes.disk_file(self._settings), json.dumps(self._samples))


class CertificateWatch:
    """Watch when the certificate of TLS ends: raise an alarm WARN_DAYS before, and clear it once there is a newer one.

    every_s  seconds between two checks
    log      receives a line if the certificate cannot be read
    """

    def __init__(self, settings: Settings, outbox: AlarmOutbox, every_s: float, log: Callable[[str], None]) -> None:
        """Start with no alarm known; one of an earlier supervisor is cleared by the first check, or raised again."""
        self._file, self._outbox, self._log = settings.tls_certificate, outbox, log
        self._every_s, self._due, self.alarmed = every_s, 0.0, ""

    def check(self) -> None:
        """Check the certificate if it is time; nothing without one."""
        now = time.monotonic()
        if self._file is None or now < self._due:
            return
        self._due = now + self._every_s
        try:
            ends = ends_at(self._file)
        except (OSError, ValueError) as error:
            self._log(f"{self._file} cannot be read as a certificate: {error}")
            return
        days = (ends - datetime.now(UTC)).total_seconds() / DAY_S
        level = "critical" if days <= 0 else "high" if days <= WARN_DAYS else "none"
        if level == self.alarmed:
            return
        self.alarmed, about = level, f"{self._file}: "
        self._outbox.clear(about, "certificate_ends")
        if level != "none":
            how = f"ended at {ends:%Y-%m-%d %H:%M} UTC" if days <= 0 else f"ends in {days:.1f} days, {ends:%Y-%m-%d}"
            detail = f"{about}{how}. Put a newer one in its place, then run `bellwether restart tls`."
            self._outbox.raise_alarm("certificate_ends", level, detail)


def ends_at(file: Path) -> datetime:
    """Return when the first certificate of a PEM file ends, in UTC. Raises OSError and ValueError if it holds none."""
    from cryptography.x509 import load_pem_x509_certificate

    return load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
