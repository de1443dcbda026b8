"""Orders to the supervisor of a home: JSON files that a command writes and the supervisor carries out and removes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict


class Command(TypedDict):
    """Order the supervisor to run a command, and to probe it at a path of its port."""

    command: str
    port: int | None
    health: str | None


class Order(TypedDict, total=False):
    """Order the supervisor to start, restart and stop services; `env` replaces the environment of those it starts."""

    start: dict[str, Command]
    restart: list[str]
    stop: list[str]
    env: dict[str, str]


class OrderInbox:
    """Hold the orders of other processes: JSON files in a folder, each removed once it is carried out."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        """Read from `folder`, which may be absent; `log` receives a line for a file that is no order."""
        self._folder, self._log = folder, log
        self._done: set[str] = set()  # orders carried out whose file could not be removed

    def pending(self) -> list[tuple[Path, Order]]:
        """Return file and order, oldest first; an empty order for a file that cannot be read."""
        return [(file, self._read(file)) for file in sorted(self._folder.glob("*.json")) if file.name not in self._done]

    def remove(self, file: Path) -> None:
        """Remove an order that was carried out."""
        try:
            file.unlink()
        except OSError:  # a file system that became read-only: carried out all the same
            self._done.add(file.name)

    def _read(self, file: Path) -> Order:
        """Return the order in a file."""
        try:
            order: Order = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            self._log(f"{file} is no order: {error}")
            return {}
        return order
