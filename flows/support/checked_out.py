"""An older data version that a person put into the workspace: the next retrain learns from it as it is.

Kept in `<home>/learning/checked-out.json` until that retrain has trained, or a new data version was written.
"""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from flows.support.processes import write_atomic
from pipelines.errors import UnreadableFile
from pipelines.settings import Settings

FILE = "learning/checked-out.json"  # below the home


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """Hold which data version is in the workspace, instead of which newest one, by whose decision and why.

    at  ISO 8601, time of day
    """

    data_hash: str
    newest: str
    by: str
    reason: str
    at: str

    def describe(self) -> str:
        """Return 'on an older version of the data, 0bb49294ecf0, not the newest 5d11aaae0881: why (by, at)'."""
        return (
            f"on an older version of the data, {self.data_hash[:12]}, not the newest {self.newest[:12]}: "
            f"{self.reason} ({self.by}, {self.at})"
        )


def _file(settings: Settings) -> Path:
    """Return the file in which this home keeps it."""
    return settings.home / FILE


def checked_out(settings: Settings) -> CheckedOut | None:
    """Return what is checked out; None where the newest data version is in the workspace. Raises UnreadableFile."""
    path = _file(settings)
    if not path.is_file():
        return None
    try:
        return CheckedOut(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UnreadableFile(
            f"{path} is damaged: {error}. Delete it, then check out the version again: `bellwether data checkout`"
        ) from error


def mark(settings: Settings, data_hash: str, newest: str, by: str, reason: str, at: datetime) -> CheckedOut:
    """Record that an older version is checked out."""
    made = CheckedOut(data_hash, newest, by, reason, at.isoformat(timespec="seconds"))
    _file(settings).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_file(settings), json.dumps(asdict(made), indent=1) + "\n")
    return made


def clear(settings: Settings) -> None:
    """Record that the workspace goes on with the newest data."""
    _file(settings).unlink(missing_ok=True)
