"""Restrict the files of an installation to its own user: new files, and those that exist already."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

OTHERS = 0o077
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
SEALS = "seals.sha256"  # of a kernel cache (pipelines.compiled); void once others could write it


def restrict() -> None:
    """Let this process, and every process it starts, create files that only its user can open."""
    os.umask(OTHERS)


@dataclass(frozen=True)
class Tightened:
    """Count the files and folders that others could open before; `foreign` belong to other users and stay as they
    are."""

    files: int
    folders: int
    foreign: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """Return one sentence for the operator."""
        message = f"{self.files} files and {self.folders} folders were open to other users and are closed now"
        if self.foreign:
            message += (
                f"; {len(self.foreign)} belong to another user, {self.foreign[0]} first: check them, then chown or "
                "remove them"
            )
        return message


def is_loose(home: Path) -> bool:
    """Return whether other users may open this folder; False if it does not exist."""
    return home.is_dir() and bool(home.stat().st_mode & OTHERS)


def tighten(home: Path) -> Tightened | None:
    """Remove every right of group and others under `home`; return None if they had none. Links are not followed.

    What lies in a closed home was open to nobody, whatever its own mode: libraries lift the umask of our processes for
    a moment, so a folder of another thread may be made then. It is closed as well, and not counted.
    Works from the top down: once the home is closed no other user can place a link further down.
    """
    home = home.resolve()
    if not home.is_dir():
        return None
    open_before = is_loose(home)
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
                if open_before:
                    folders, files = folders + folder, files + (not folder)
            if folder:
                todo += path.iterdir()
        except FileNotFoundError:  # another process removed it just now
            continue
    return Tightened(files, folders, tuple(foreign)) if files or folders or foreign else None
