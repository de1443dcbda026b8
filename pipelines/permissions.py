"""Files of an installation are for its own user only: what is written from now on, and what is there already."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

OTHERS = 0o077
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
SEALS = "seals.sha256"  # of a kernel cache (pipelines.compiled); worth nothing once others could write it


def restrict() -> None:
    """Let this process, and every process it starts, create files that only its user can open."""
    os.umask(OTHERS)


@dataclass(frozen=True)
class Tightened:
    """How many files and folders others could open before; `foreign` are those of other users, left as they are."""

    files: int
    folders: int
    foreign: tuple[Path, ...] = ()

    def __str__(self) -> str:
        told = f"{self.files} files and {self.folders} folders were open to other users and are closed now"
        if self.foreign:
            told += (
                f"; {len(self.foreign)} belong to another user, {self.foreign[0]} first: look at them, then chown or "
                "remove them"
            )
        return told


def is_loose(home: Path) -> bool:
    """Whether other users may open this folder; False if there is none."""
    return home.is_dir() and bool(home.stat().st_mode & OTHERS)


def tighten(home: Path) -> Tightened | None:
    """Take every right of group and others under `home`; None if they had none. Links are not followed.

    From the top down: once the home is closed nobody can put a link in the way of what comes next.
    """
    home = home.resolve()
    if not home.is_dir():
        return None
    files = folders = 0
    foreign: list[Path] = []
    todo = [home]
    while todo:
        path = todo.pop()
        try:
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                continue
            folder = stat.S_ISDIR(found.st_mode)
            if found.st_uid != os.geteuid():
                foreign.append(path)
                continue
            if found.st_mode & OTHERS:
                if folder and found.st_mode & WRITABLE:
                    (path / SEALS).unlink(missing_ok=True)
                path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
                folders, files = folders + folder, files + (not folder)
            if folder:
                todo += path.iterdir()
        except FileNotFoundError:  # whatever runs here removed it just now
            continue
    return Tightened(files, folders, tuple(foreign)) if files or folders or foreign else None
