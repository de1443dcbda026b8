"""The generation file: what every serving process is to serve. Flows write it by rename, `slots` follows it.

It is taken as a whole or not at all: a file that is not exactly of this shape is refused, and what was served before is
served on.
"""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import StateError
from pipelines.families import FAMILIES

GENERATION_FILE = "generation.json"
MOST_BYTES = 1 << 20  # one of today takes about 4 kB
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Arm(_Strict):
    version: Annotated[str, Field(min_length=1)]
    digest: _Sha256
    run_id: str | None = None
    data_hash: str | None = None
    git_commit: str | None = None
    verdict: str = ""
    promotion: int | None = None


class _Arms(_Strict):
    champion: _Arm | None
    challenger: _Arm | None = None


class _Warm(_Strict):
    data_hash: str
    digest: _Sha256
    path: str


class _Generation(_Strict):
    generation: Annotated[int, Field(ge=1)]
    written_at: Annotated[AwareDatetime, Field(strict=False)]
    families: dict[str, _Arms]
    warm_start: _Warm | None

    @model_validator(mode="after")
    def _known(self) -> "_Generation":
        if unknown := sorted(set(self.families) - set(FAMILIES)):
            raise ValueError(f"families: no model family {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
        return self


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
    """The generation file, None if nothing was ever promoted. Raises StateError, naming what is wrong."""
    file = serving_dir / GENERATION_FILE
    try:
        with file.open("rb") as handle:
            raw = handle.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES:,} bytes")
        content: dict[str, Any] = json.loads(raw, object_pairs_hook=_once)
        told = _Generation.model_validate(content)
        _refuse_outside(serving_dir, told.warm_start)
        return content
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        why = str(error)
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error}. Mend the disk or its rights.") from error
    raise StateError(
        f"{file} is not a generation file ({why[:300]}); `bellwether promote` or `bellwether rollback` writes it anew"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError on a name that is there twice, of which readers would see another one each."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError(
            f"a name is there twice: {sorted({k for k, _ in pairs if [n for n, _ in pairs].count(k) > 1})}"
        )
    return content


def _refuse_outside(serving_dir: Path, warm: _Warm | None) -> None:
    """Raises ValueError for a warm start outside the folder that flows publish into."""
    folder = (serving_dir / "warm").resolve()
    if warm is not None and not Path(warm.path).resolve().is_relative_to(folder):
        raise ValueError(f"warm_start.path: {warm.path} is not under {folder}")


def acknowledged(serving_dir: Path) -> dict[int, int]:
    """pid → generation it serves, of the processes that still live."""
    found = {}
    for file in (serving_dir / "ack").glob("*.json"):
        try:
            told = json.loads(file.read_text())
            os.kill(told["pid"], 0)
        except FileNotFoundError:
            continue  # its process ended just now
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
