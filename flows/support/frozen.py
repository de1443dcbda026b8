"""Frozen learning: what a person stopped, who did and since when.

Two ways, each true by itself: `retrain.enabled` and `promotion.enabled` of params.yaml, and `bellwether freeze`, which
records who, when and why. Frozen, nothing is retrained or promoted by itself; a person's own command still works.
"""

import json
import os
import pwd
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pipelines.errors import UnknownName, UnreadableFile
from pipelines.params import Params
from pipelines.settings import Settings, load_params

What: TypeAlias = Literal["retrain", "promotion"]
FILE = "learning/frozen.json"  # below the home
KINDS: tuple[What, ...] = ("retrain", "promotion")
_BY_COMMAND, _BY_PARAMS = "command", "params.yaml"
_State: TypeAlias = dict[str, dict[str, dict[str, str]]]  # how → what → fields of Freeze


@dataclass(frozen=True, slots=True)
class Freeze:
    """Hold one freeze.

    by     who typed the command; of params.yaml the owner of the file, for it does not say who edited it
    since  ISO 8601, time of day: of the command, or when the file that first said so was written
    how    command | params.yaml
    """

    what: str
    by: str
    since: str
    reason: str
    how: str

    def describe(self) -> str:
        """Return in words what is frozen, by whom, since when and how it ends."""
        if self.how == _BY_PARAMS:
            return (
                f"{self.what}.enabled is false in params.yaml since {self.since}, a file of {self.by}; set it to true "
                "to go on"
            )
        return (
            f"{self.what} is frozen by {self.by} since {self.since}: {self.reason}; `bellwether unfreeze {self.what}` "
            "ends it"
        )


def freezes(settings: Settings) -> list[Freeze]:
    """Return what is frozen now, by params.yaml as it is on disk and by command.

    The first look at a params.yaml that freezes something records since when. Raises UnreadableFile, BadValues.
    """
    state = _read(settings)
    params = _params(settings.params_file, settings.params_file.stat().st_mtime_ns)
    seen = state.get(_BY_PARAMS, {})
    now_off: dict[str, dict[str, str]] = {
        what: seen.get(what) or _by_params(what, settings.params_file) for what in KINDS if _is_off(params, what)
    }
    if now_off != seen:
        state[_BY_PARAMS] = now_off
        _write(settings, state)
    found = [*now_off.values(), *state.get(_BY_COMMAND, {}).values()]
    return [Freeze(**each) for each in found]


def frozen(settings: Settings, what: What) -> Freeze | None:
    """Return what freezes retrains or promotions; None where they go on. Raises as `freezes`."""
    return next((each for each in freezes(settings) if each.what == what), None)


def freeze(settings: Settings, what: str, by: str, reason: str, at: datetime) -> Freeze:
    """Freeze `what` by command. One that is frozen by command already stays as it is. Raises UnknownName."""
    state = _read(settings)
    by_command = state.setdefault(_BY_COMMAND, {})
    made = asdict(Freeze(_known(what), by, at.isoformat(timespec="seconds"), reason, _BY_COMMAND))
    kept = by_command.setdefault(what, made)
    _write(settings, state)
    return Freeze(**kept)


def unfreeze(settings: Settings, what: str) -> Freeze | None:
    """End a freeze by command and return it; None where there was none. Raises UnknownName."""
    state = _read(settings)
    ended = state.get(_BY_COMMAND, {}).pop(_known(what), None)
    if ended is not None:
        _write(settings, state)
    return None if ended is None else Freeze(**ended)


@lru_cache(maxsize=4)
def _params(file: Path, written_ns: int) -> Params:
    """Return params.yaml as it was written then: the reconciler looks every two seconds."""
    return load_params(file)


def _known(what: str) -> str:
    """Return `what` if it can be frozen. Raises UnknownName."""
    if what not in KINDS:
        raise UnknownName(f"{what!r} cannot be frozen; what can: {', '.join(KINDS)}")
    return what


def _is_off(params: Params, what: str) -> bool:
    """Return whether params.yaml disables retrains or promotions."""
    section = params.retrain if what == "retrain" else params.promotion
    return not section.enabled


def _by_params(what: str, file: Path) -> dict[str, str]:
    """Return the freeze of a params.yaml that says so now and did not at the last look."""
    facts = file.stat()
    written = datetime.fromtimestamp(facts.st_mtime, UTC).isoformat(timespec="seconds")
    return asdict(Freeze(what, _owner(facts.st_uid), written, f"{what}.enabled: false", _BY_PARAMS))


def _owner(uid: int) -> str:
    """Return the name of a user of this machine, its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _file(settings: Settings) -> Path:
    """Return the file in which this home keeps its freezes."""
    return settings.home / FILE


def _read(settings: Settings) -> _State:
    """Return the stored freezes; nothing where there are none. Raises UnreadableFile."""
    path = _file(settings)
    try:
        found: Any = json.loads(path.read_text())
        if not isinstance(found, Mapping):
            raise ValueError("no JSON object")
        return {how: {what: dict(each) for what, each in of.items()} for how, of in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UnreadableFile(
            f"{path} is damaged: {error}. What it froze is unknown: delete it and freeze again what should be"
        ) from error


def _write(settings: Settings, state: _State) -> None:
    """Replace the stored freezes in one step, readable by nobody else."""
    path = _file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(state, indent=1) + "\n")
    draft.chmod(0o600)
    draft.replace(path)
