"""Whether anything can be stored: the store, its pages, the tier file and the room on the disk."""

import logging
import threading
from datetime import datetime, timedelta

from pipelines import disk
from pipelines.contracts import DAY_S
from pipelines.errors import ServiceDown
from pipelines.settings import Settings
from pipelines.store import Marks, PageCheck, Store, StoreFault
from serving.service.alarm_queue import AlarmQueue
from serving.service.system_clock import steady_s, utc_now
from serving.state.tiers import TierStore

log = logging.getLogger("bellwether.decision")
TIER_FILE = "tiers.json"
PROBE = "store probe"  # a lease: the smallest real write, tried while the store is not writable
PAGE_CHECK_INTERVAL_S = DAY_S
SUBJECT = "store: "  # first words of every alarm about the store's pages


class StoreMonitor:
    """Hold what is known of store and disk. A failed call sets `fault`; only the poll's probe clears it."""

    def __init__(self, store: Store, tiers: TierStore, where: Settings, alarms: AlarmQueue) -> None:
        """Start without a fault; nothing was checked yet."""
        self._store, self._tiers, self._where, self._alarms = store, tiers, where, alarms
        self.fault: str | None = None  # why nothing can be stored
        self.damage: str | None = None  # what the last check of the pages found
        self.disk = disk.DiskState("ok", 0, "not checked yet")
        self._page_check: PageCheck | None = None  # the check that runs now
        self._copying: threading.Thread | None = None  # that copies the log, or did last
        self._checked_at_s: float | None = None  # steady time at which the last check of the pages ended

    def report(self, error: BaseException) -> None:
        """Note that a write or a read of the store failed with `error`."""
        if str(error) == self.fault:  # a call that was refused because of the known fault
            return
        if self.fault is None:
            log.error("the store cannot be written: %s", error)
        reason = str(error).splitlines()[0][:200] if str(error) else "no reason given"
        self.fault = f"store not writable ({type(error).__name__}: {reason})"

    def refuse_writes(self) -> None:
        """Raise ServiceDown while the store is known to be out; the poll finds it back, not a caller."""
        if self.fault is not None:
            raise ServiceDown(self.fault)

    def check(self, since: datetime | None) -> Marks:
        """Return the marks of the store, as `Store.marks`: a write could begin. After a fault, one is made first."""
        if self.fault is not None:
            self._probe()
        return self._store.marks(since)

    def _probe(self) -> None:
        """Write a lease and the unsaved tiers, then clear the fault: a full disk refuses only real writes."""
        self._store.acquire_lease(PROBE, PROBE, utc_now(), timedelta(seconds=1))
        if self._tiers.unsaved:
            try:
                self._tiers.save()
            except OSError as error:
                raise ServiceDown(f"{TIER_FILE} cannot be written: {error}. Make room on the disk") from error
        self.fault = None

    # ---- disk and pages -------------------------------------------------------------------------------------------

    def check_disk(self) -> None:
        """Measure the room on the disk of the installation."""
        where = self._where
        self.disk = disk.check_space(where.home, where.disk_warn_mb * disk.MB, where.disk_stop_mb * disk.MB)

    def start_page_check(self) -> None:
        """Check the store's pages in a thread where a check is due; no call and no writer waits for it."""
        due = self._checked_at_s is None or steady_s() - self._checked_at_s >= PAGE_CHECK_INTERVAL_S
        if self._page_check is None and due:
            self._page_check = PageCheck(self._where.store)
            threading.Thread(target=self._check_pages, args=(self._page_check,), name="pages", daemon=True).start()

    def _check_pages(self, check: PageCheck) -> None:
        """Run a check to its end and raise an alarm about what it found."""
        damage = check.run()
        if damage is not None:
            log.error("the store is damaged: %s", damage)
            detail = f"{SUBJECT}{damage}. Stop everything and restore a backup: `bellwether restore FILE`"
            self._alarms.raise_alarm("store_damaged", "critical", detail, SUBJECT)
        elif self.damage is not None:
            self._alarms.close_alarm("store_damaged", f"{SUBJECT}whole again", SUBJECT)
        self.damage, self._checked_at_s, self._page_check = damage, steady_s(), None

    def start_log_copy(self) -> None:
        """Copy a long log of the store in a thread, unless one does so now; no call, no writer and no poll waits."""
        if self._store.log_is_long and (self._copying is None or not self._copying.is_alive()):
            self._copying = threading.Thread(target=self._copy_log, name="log", daemon=True)
            self._copying.start()

    def _copy_log(self) -> None:
        """Copy the log; a fault means that the file cannot be written."""
        try:
            self._store.copy_log()
        except StoreFault as error:
            self.report(error)

    @property
    def page_state(self) -> str:
        """Return `checking`, `whole` or `not checked yet`, for the readiness check."""
        if self._page_check is not None:
            return "checking"
        return "whole" if self._checked_at_s is not None else "not checked yet"

    def stop(self) -> None:
        """End the check of the pages that runs now."""
        if self._page_check is not None:
            self._page_check.stop()
