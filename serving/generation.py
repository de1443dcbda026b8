"""The generation file: what every serving process is to serve. Flows write it by rename, `slots` follows it."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.errors import StateError

GENERATION_FILE = "generation.json"


def write_generation(
    serving_dir: Path,
    families: Mapping[str, Mapping[str, Mapping[str, Any] | None]],
    warm_start: Mapping[str, str] | None,
    at: datetime,
) -> int:
    """Tell every serving process what to serve, from now on; returns the new generation.

    families    family → {"champion": {version, digest, run_id, data_hash, git_commit, verdict} | None, "challenger": …}
    warm_start  {data_hash, digest, path} of a published warm start
    One writer at a time: the caller holds the promotion lease.
    """
    serving_dir.mkdir(parents=True, exist_ok=True)
    file = serving_dir / GENERATION_FILE
    try:
        generation = 1 + int((read_generation(serving_dir) or {"generation": 0})["generation"])
    except StateError:  # it is being replaced; seconds since 1970 are above any number that was counted up
        generation = int(at.timestamp())
    content = {"generation": generation, "written_at": at.isoformat(), "families": families, "warm_start": warm_start}
    write_atomically(file, content)
    return generation


def read_generation(serving_dir: Path) -> dict[str, Any] | None:
    """The generation file, None if nothing was ever promoted. Raises StateError if it is not one."""
    file = serving_dir / GENERATION_FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        if isinstance(content["generation"], int) and isinstance(content["families"], dict):
            return content
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{file} is not a generation file ({error}); promote or roll back to write it anew") from error
    raise StateError(f"{file}: generation must be an integer and families an object; promote to write it anew")


def acknowledged(serving_dir: Path) -> dict[int, int]:
    """pid → generation it serves, of the processes that still live."""
    found = {}
    for file in (serving_dir / "ack").glob("*.json"):
        told = json.loads(file.read_text())
        try:
            os.kill(told["pid"], 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass  # it lives, as another user
        found[told["pid"]] = told["generation"]
    return found


def write_atomically(file: Path, content: Any) -> None:
    """`content` as JSON in place of `file`, durable on return: whoever reads sees the old or the new, whole."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with beside.open("w") as handle:
        json.dump(content, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, file)
