"""The state of a simulated market between two minutes, as a file: numpy arrays and JSON, never pickle.

A market that is restored goes on byte for byte as the one that was saved. Files are named by symbol, by a digest of
what the market is made from, and by the number of minutes made: the state of another market is never read, and a spec
that differs only in `live_days` or in other followers finds its own.
"""

import hashlib
import io
import json
import logging
import os
import re
import uuid
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import JsonObject
from pipelines.data.simulator.market_path import MarketPath
from pipelines.data.symbols import slug_of

log = logging.getLogger("bellwether.simulator")
FORMAT = 1  # raise it when the arrays of a path, or what is made of them, change
ARRAYS = ("state", "market", "tape", "waiting")
SCRATCH = ("log", "time", "buys", "lots", "weight")  # of the market record: written again in each minute
NAME = re.compile(r"\.(\d+)\.npz$")


def pack(path: MarketPath) -> bytes:
    """Return what `path` carries over to its next minute; some 100 kB."""
    arrays = {name: getattr(path, name) for name in ARRAYS}
    arrays["market"] = arrays["market"].copy()
    for name in SCRATCH:
        arrays["market"][name] = 0
    facts: JsonObject = {
        "made": path.made,
        "streams": [stream.bit_generator.state for stream in _streams(path)],
        "funding": [path.funding.total, path.funding.count],
    }
    out = io.BytesIO()
    np.savez_compressed(out, facts=np.array(json.dumps(facts)), allow_pickle=False, **arrays)
    return out.getvalue()


def unpack(path: MarketPath, content: bytes) -> None:
    """Set `path` to a state that `pack` returned for the same market. Raises ValueError, KeyError or BadZipFile."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        loaded: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
        facts = json.loads(str(arrays["facts"]))
    for name, array in loaded.items():
        if array.dtype != getattr(path, name).dtype or array.shape != getattr(path, name).shape:
            raise ValueError(f"{name} has another layout")
    for stream, state in zip(_streams(path), facts["streams"], strict=True):
        stream.bit_generator.state = state
    for name, array in loaded.items():
        setattr(path, name, array)
    path.made = facts["made"]
    path.funding.total, path.funding.count = facts["funding"]


def save(path: MarketPath, folder: Path) -> Path:
    """Write the state of `path` into `folder`, whole or not at all, and return the file."""
    return write(path, path.made, pack(path), folder)


def write(path: MarketPath, made: int, content: bytes, folder: Path) -> Path:
    """Write what `pack` returned when `made` minutes of the market of `path` were made; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_prefix(path)}.{made:09d}.npz"
    draft = file.with_name(f"{file.name}.tmp.{uuid.uuid4().hex[:16]}")
    try:
        draft.write_bytes(content)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
    return file


def saved(path: MarketPath, folder: Path) -> dict[int, Path]:
    """Return the files of the market of `path` in `folder` by minutes made, fewest first."""
    found = {
        int(match.group(1)): file
        for file in folder.glob(f"{_prefix(path)}.*.npz")
        if (match := NAME.search(file.name)) is not None
    }
    return dict(sorted(found.items()))


def restore(path: MarketPath, folder: Path, until: int | None = None) -> bool:
    """Set `path` to its newest saved state; return False, and leave it as it is, if there is none.

    until  minutes made that the state has at most; None = the newest
    A file that cannot be read is passed over with a warning, and the one before it is taken.
    """
    for made, file in reversed(saved(path, folder).items()):
        if until is not None and made > until:
            continue
        try:
            unpack(path, file.read_bytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning(
                "%s is no state of this market (%s): an older one is used, or its minutes are made", file, error
            )
            continue
        return True
    return False


def prune(path: MarketPath, folder: Path, keep: int) -> None:
    """Remove saved states of the market of `path` except the oldest, from which all others can be made, and `keep`."""
    for file in list(saved(path, folder).values())[1:-keep]:
        file.unlink(missing_ok=True)


def _streams(path: MarketPath) -> list[np.random.Generator]:
    """Return the generators of `path` in a fixed order."""
    return [path.steps, path.chance, *path.noise, *([] if path.factor is None else [path.factor])]


def _prefix(path: MarketPath) -> str:
    """Return how the file names of a market begin: its symbol, and a digest of what it is made from."""
    own = path.own
    spec = own.spec.model_dump(mode="json", exclude={"live_days", "followers"}) | {"symbol": own.symbol}
    follower = None if own.follower is None else own.follower.model_dump(mode="json") | {"symbol": own.symbol}
    made_from = {"format": FORMAT, "spec": spec, "design": asdict(own.design), "follower": follower, "tape": path.reads}
    return f"{slug_of(own.symbol)}.{hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]}"
