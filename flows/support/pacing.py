"""How far the deployments are that follow a market: who starts their runs, what is next due, and what was missed.

`<home>/learning/due.json` keeps it; flows.support.market_runs writes it, `bellwether status` shows it.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from flows.support.due import Progress, brought_up, missed, next_occurrence, waiting
from flows.support.installation import Installation
from flows.support.market_time import learning_now
from pipelines.contracts import JsonObject
from pipelines.settings import Settings

log = logging.getLogger("bellwether.due")
Who: TypeAlias = Literal["prefect", "market"]


@dataclass(frozen=True, slots=True)
class Pacing:
    """Hold who starts runs, and how far each deployment is.

    every     deployment → its interval in market time
    held      deployment → ids of its Prefect schedules that were active before they were held
    progress  deployment → how far it is in market time
    late      deployment → runs of Prefect's own schedules that were overdue and gave way to a newer one, in all
    checked   when the Prefect server was last searched for schedules to hold and runs that are late, time of day
    """

    who: Who = "prefect"
    speed: float = 1.0
    every: Mapping[str, timedelta] = field(default_factory=dict)
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    progress: Mapping[str, Progress] = field(default_factory=dict)
    late: Mapping[str, int] = field(default_factory=dict)
    checked: datetime | None = None


def describe(installation: Installation) -> JsonObject:
    """Return who starts runs, and of each deployment that follows the market what is next due and missed; JSON-ready.

    Times are the market's. From stored state: no server is asked.
    """
    pacing = read_pacing(installation.settings)
    every = pacing.every
    found: JsonObject = {"paced_by": pacing.who, "speed": pacing.speed, "deployments": {}}
    if pacing.who == "market":
        market = learning_now(installation)
        progress = brought_up(every, pacing.progress, market)
        found["deployments"] = {name: row_of(progress[name], each, market) for name, each in every.items()}
    else:
        found["deployments"] = {name: {"missed": each.missed} for name, each in pacing.progress.items() if each.missed}
    for name, count in pacing.late.items():
        row = found["deployments"].setdefault(name, {"missed": 0})
        row["missed"] += count
    return found


def row_of(progress: Progress, every: timedelta, market: datetime) -> JsonObject:
    """Return how far one deployment is, JSON-ready."""
    return {
        "every_s": every.total_seconds(),
        "last": progress.through.isoformat() if progress.started else None,
        "started_at": progress.started.isoformat() if progress.started else None,
        "next_due": next_occurrence(progress, every).isoformat(),
        "waiting": waiting(progress, every, market),
        "missed": missed(progress, every, market),
    }


def _file(settings: Settings) -> Path:
    """Return the file in which this home keeps its pacing."""
    return settings.home / "learning" / "due.json"


def read_pacing(settings: Settings) -> Pacing:
    """Return the stored pacing; that of a new home where there is none, or where it cannot be read."""
    try:
        found = json.loads(_file(settings).read_text())
        return Pacing(
            who="market" if found["who"] == "market" else "prefect",
            speed=float(found["speed"]),
            every={name: timedelta(seconds=float(each)) for name, each in found["every_s"].items()},
            held={name: tuple(ids) for name, ids in found["held"].items()},
            progress={
                name: Progress(_moment(each["through"]), each["started"] and _moment(each["started"]), each["missed"])
                for name, each in found["progress"].items()
            },
            late=dict(found["late"]),
            checked=found["checked"] and _moment(found["checked"]),
        )
    except FileNotFoundError:
        return Pacing()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.error(
            "%s is damaged (%s): what is due counts from now. `bellwether schedules` shows what is held and not "
            "known any more, `bellwether schedules reset` makes them again", _file(settings), error,
        )  # fmt: skip
        return Pacing()


def write_pacing(settings: Settings, pacing: Pacing) -> None:
    """Replace the stored pacing in one step, readable by nobody else."""
    path = _file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "who": pacing.who,
        "speed": pacing.speed,
        "every_s": {name: each.total_seconds() for name, each in pacing.every.items()},
        "held": {name: list(ids) for name, ids in pacing.held.items()},
        "progress": {
            name: {
                "through": each.through.isoformat(), "started": each.started and each.started.isoformat(),
                "missed": each.missed,
            }
            for name, each in pacing.progress.items()
        },
        "late": dict(pacing.late),
        "checked": pacing.checked and pacing.checked.isoformat(),
    }  # fmt: skip
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    draft.chmod(0o600)
    draft.replace(path)


def _moment(text: str) -> datetime:
    """Return a moment in ISO 8601 with a zone. Raises ValueError."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found
