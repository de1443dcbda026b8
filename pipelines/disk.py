"""How full the disk under an installation is, in three words: what is still safe to write."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class DiskState:
    """level: ok; warn: somebody should make room; stop: nothing may be opened, and what is optional is not recorded."""

    level: Literal["ok", "warn", "stop"]
    free_bytes: int
    detail: str


def look(home: Path, warn_bytes: int, stop_bytes: int) -> DiskState:
    """Free space where `home` is, or will be. Raises OSError if the disk cannot be asked."""
    folder = home.resolve()
    folder = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free <= stop_bytes:
        told = f"disk full: {free // MB:,} MB free under {home}, nothing is opened under {stop_bytes // MB:,} MB"
        return DiskState("stop", free, f"{told}; make room")
    if free <= warn_bytes:
        return DiskState("warn", free, f"{free // MB:,} MB free under {home}, wanted {warn_bytes // MB:,} MB")
    return DiskState("ok", free, f"{free // MB:,} MB free")
