"""Free disk space of an installation, and a forecast of when it runs out. Reads the file system only."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.contracts import DAY_S

MB = 2**20
MIN_SPAN_S = 3_600.0  # a forecast from less than an hour would reflect one run, not a day


@dataclass(frozen=True)
class DiskState:
    """Hold free space and what it still permits.

    level       "ok"; "warn": free some soon; "stop": open no position and record nothing more
    free_bytes  what this user may still write
    detail      one sentence with both numbers
    """

    level: Literal["ok", "warn", "stop"]
    free_bytes: int
    detail: str


def check_space(home: Path, warn_bytes: int, stop_bytes: int) -> DiskState:
    """Compare the free bytes of the file system under `home` with the two limits.

    For a home that does not exist yet, the nearest existing folder counts. Raises OSError if it cannot be read.
    """
    free_bytes = free(home)
    if free_bytes < stop_bytes:
        return DiskState(
            "stop",
            free_bytes,
            f"disk full: {format_bytes(free_bytes)} free, at least {format_bytes(stop_bytes)} needed",
        )
    if free_bytes < warn_bytes:
        return DiskState("warn", free_bytes, f"{format_bytes(free_bytes)} free, {format_bytes(warn_bytes)} wanted")
    return DiskState("ok", free_bytes, f"{format_bytes(free_bytes)} free")


def free(home: Path) -> int:
    """Return how many bytes an unprivileged process may still write under `home`."""
    folder = home.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@dataclass(frozen=True, slots=True)
class Forecast:
    """Hold how fast free space shrinks, in bytes an hour, and in how many days it is gone at that pace."""

    bytes_an_hour: float
    days: float


def forecast(samples: Sequence[tuple[float, int]], now_s: float) -> Forecast | None:
    """Forecast when the disk is full, at the rate between the oldest and the newest sample.

    samples  (epoch seconds, free bytes), in any order; those after `now_s` are of a clock that jumped: ignored
    Returns  None while the samples span less than an hour or free space does not shrink
    """
    usable = sorted(sample for sample in samples if sample[0] <= now_s)
    if len(usable) < 2:
        return None
    (first_s, first_free), (last_s, last_free) = usable[0], usable[-1]
    if last_s - first_s < MIN_SPAN_S or last_free >= first_free:
        return None
    pace = (first_free - last_free) / (last_s - first_s)
    return Forecast(3600.0 * pace, last_free / pace / DAY_S)


def format_bytes(n_bytes: int) -> str:
    """Return bytes in readable form: 1.5 GB, 12 MB (binary units)."""
    return f"{n_bytes / 2**30:.1f} GB" if n_bytes >= 2**30 else f"{n_bytes / MB:.0f} MB"
