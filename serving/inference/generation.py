"""Read and write the generation file: the models every serving process has to serve, and a warm start for each symbol.

Flows replace it by rename and `model_slots` follows it. It is accepted as a whole or refused as a whole; after a
refusal the models before it stay in service. Files up to release 0.10 name one warm start, `warm_start`; they are read
as a universe of one.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.contracts import JsonObject
from pipelines.errors import BadValues, StateError
from pipelines.experiments.assignment import read_assignment
from pipelines.families import FAMILIES

GENERATION_FILE = "generation.json"
MAX_BYTES = 1 << 20  # a usual one takes about 4 kB
UNREADABLE = "(unreadable)"  # symbol of a warm start that an old file names and that cannot be read
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    """Refuse unknown fields and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Arm(_Strict):
    """Validate one arm: the model and where it comes from."""

    version: Annotated[str, Field(min_length=1)]
    digest: _Sha256
    run_id: str | None = None
    data_hash: str | None = None
    git_commit: str | None = None
    verdict: str = ""
    promotion: int | None = None


class _Arms(_Strict):
    """Validate the arms of one family."""

    champion: _Arm | None
    challenger: _Arm | None = None


class _Warm(_Strict):
    """Validate the reference to a published warm start."""

    data_hash: str
    digest: _Sha256
    path: str


class _Stage(_Strict):
    """Validate one stage of an assignment: weights by digest, in force from a block on."""

    from_block: int
    weights: dict[_Sha256, float]


class _Assignment(_Strict):
    """Validate which arm of a family decides when."""

    experiment: Annotated[int, Field(ge=1)]
    key: _Sha256
    origin_s: float
    period_s: Annotated[float, Field(gt=0)]
    champion: _Sha256
    challenger: _Sha256
    guarded: Literal["champion", "challenger"]
    stages: list[_Stage]


class _Generation(_Strict):
    """Validate a whole generation file."""

    generation: Annotated[int, Field(ge=1)]
    written_at: Annotated[AwareDatetime, Field(strict=False)]
    families: dict[str, _Arms]
    warm_starts: dict[Annotated[str, Field(min_length=1)], _Warm]
    assignments: dict[str, _Assignment] = {}

    @model_validator(mode="after")
    def _check_families(self) -> "_Generation":
        """Return self; raise ValueError for a family that this release does not know."""
        if unknown := sorted(set(self.families) - set(FAMILIES)):
            raise ValueError(f"families: no model family {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
        return self

    @model_validator(mode="after")
    def _check_assignments(self) -> "_Generation":
        """Return self; raise ValueError for an assignment to other digests than those of the family's arms."""
        for family, found in self.assignments.items():
            arms = self.families.get(family)
            served = {arm and arm.digest for arm in (arms and arms.champion, arms and arms.challenger)}
            if not {found.champion, found.challenger} <= served:
                raise ValueError(f"assignments.{family}: it is of other versions than the two that are served")
            try:
                read_assignment(found.model_dump())
            except BadValues as error:
                raise ValueError(f"assignments.{family}: {error}") from error
        return self


def write_generation(
    serving_dir: Path,
    families: Mapping[str, Mapping[str, Mapping[str, object] | None]],
    warm_starts: Mapping[str, Mapping[str, str]],
    at: datetime,
    assignments: Mapping[str, JsonObject] | None = None,
) -> int:
    """Replace the generation file, which every serving process follows; return the new generation number.

    families     family → {"champion": {version, digest, run_id, data_hash, git_commit, verdict} | None,
                 "challenger": …}
    warm_starts  symbol → {data_hash, digest, path} of its published warm start; a symbol that it lacks is not live
    assignments  family → `Assignment.to_dict` of the experiment that runs; a family without one is not in it
    One writer at a time: the caller holds the promotion lease.
    """
    serving_dir.mkdir(parents=True, exist_ok=True)
    file = serving_dir / GENERATION_FILE
    try:
        generation = 1 + int((read_generation(serving_dir) or {"generation": 0})["generation"])
    except StateError:  # the unreadable file is replaced; seconds since 1970 exceed any number counted up so far
        generation = int(at.timestamp())
    content = {
        "generation": generation, "written_at": at.isoformat(), "families": families, "warm_starts": warm_starts,
        "assignments": assignments or {},
    }  # fmt: skip
    write_atomically(file, content)
    return generation


def read_generation(serving_dir: Path) -> JsonObject | None:
    """Return the content of the generation file, with `warm_starts` by symbol; None if nothing was ever promoted.

    Raises StateError, naming what is wrong, for a file that is not exactly of the expected shape.
    """
    file = serving_dir / GENERATION_FILE
    try:
        with file.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"longer than {MAX_BYTES:,} bytes")
        content: JsonObject = json.loads(raw, object_pairs_hook=_unique_keys)
        content = _with_warm_starts(content)
        generation = _Generation.model_validate(content)
        _refuse_outside(serving_dir, generation.warm_starts)
        return content
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        why = str(error)
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error}. Check the disk and the file's permissions.") from error
    raise StateError(
        f"{file} is not a generation file ({why[:300]}); `bellwether promote` or `bellwether rollback` writes a new one"
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> JsonObject:
    """Return the pairs as a JSON object; raise ValueError on a repeated key, which JSON readers resolve differently."""
    content = dict(pairs)
    if len(content) != len(pairs):
        repeated = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"repeated keys: {repeated}")
    return content


def _with_warm_starts(content: JsonObject) -> JsonObject:
    """Return the content with `warm_starts`, of a file up to release 0.10 with the symbol that its warm start names."""
    if not isinstance(content, dict) or "warm_starts" in content or "warm_start" not in content:
        return content
    named = content["warm_start"]
    others = {name: value for name, value in content.items() if name != "warm_start"}
    if named is None:
        return others | {"warm_starts": {}}
    return others | {"warm_starts": {_symbol_of(_Warm.model_validate(named)): named}}


def _symbol_of(warm: _Warm) -> str:
    """Return the symbol that a published warm start is of; UNREADABLE where it cannot be told: it is refused later."""
    try:
        return str(json.loads((Path(warm.path) / "meta.json").read_text())["symbol"])
    except (OSError, ValueError, KeyError, TypeError):
        return UNREADABLE


def _refuse_outside(serving_dir: Path, warm_starts: Mapping[str, _Warm]) -> None:
    """Raise ValueError for a warm start outside the folder that flows publish into."""
    folder = (serving_dir / "warm").resolve()
    for symbol, warm in warm_starts.items():
        if not Path(warm.path).resolve().is_relative_to(folder):
            raise ValueError(f"warm_starts.{symbol}.path: {warm.path} is not under {folder}")


def acknowledged(serving_dir: Path) -> dict[int, int]:
    """Return pid → generation served, for the serving processes that are still alive."""
    found = {}
    for file in (serving_dir / "ack").glob("*.json"):
        try:
            record = json.loads(file.read_text())
            os.kill(record["pid"], 0)
        except FileNotFoundError:
            continue  # its process has just ended
        except ProcessLookupError:
            continue
        except PermissionError:
            pass  # alive, as another user
        found[record["pid"]] = record["generation"]
    return found


def write_atomically(file: Path, content: object) -> None:
    """Replace `file` by `content` as JSON, durable on return; a reader sees the old or the new file, whole."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w") as handle:
        handle.write(msgspec.json.format(json.dumps(content), indent=1))  # `json.dump` indents entry by entry
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(draft, file)
