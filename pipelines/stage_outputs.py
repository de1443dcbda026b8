"""Where the stages of the build graph put what they compute of each market, and what they say of it.

    artifacts/features/meta.json   shared: data_hash, symbols, decision_timeframe, catalogues; markets: symbol → facts
    artifacts/features/<slug>/     the arrays of one market, and warm/
    artifacts/labels/<slug>/       the outcomes of one market
    artifacts/timings/<family>.json what the fit of a family took

Stages up to release 0.10 computed one market, whose facts were the whole meta.json.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.contracts import JsonObject
from pipelines.data.symbols import slug_of
from pipelines.data.timeframes import Grid
from pipelines.errors import UnknownName


def features_of(artifacts: Path, symbol: str) -> Path:
    """Return the folder with what the features stage computed of one market."""
    return artifacts / "features" / slug_of(symbol)


def labels_of(artifacts: Path, symbol: str) -> Path:
    """Return the folder with what the labels stage computed of one market."""
    return artifacts / "labels" / slug_of(symbol)


def as_stored(folder: Path) -> Path:
    """Return a market's folder, or that of the whole stage, where a release up to 0.10 put its one market."""
    return folder if folder.is_dir() else folder.parent


def read_meta(artifacts: Path) -> JsonObject:
    """Return what the features stage wrote of its data. Raises FileNotFoundError before the first run."""
    meta: JsonObject = json.loads((artifacts / "features" / "meta.json").read_text())
    return meta


def symbols_in(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the symbols of a meta.json, in its order: the codes of pooled rows are positions in it."""
    return tuple(meta["symbols"]) if "symbols" in meta else (str(meta["symbol"]),)


def facts_of(meta: Mapping[str, Any], symbol: str | None = None) -> JsonObject:
    """Return the facts of one market of a meta.json with the shared ones; None = the first market.

    Raises  UnknownName with the markets it has
    """
    known = symbols_in(meta)
    name = known[0] if symbol is None and known else symbol
    if name not in known:
        raise UnknownName(f"the newest features are of {', '.join(known) or 'no market'}, not of {name}")
    shared = {key: value for key, value in meta.items() if key not in ("markets", "symbols")}
    return {**shared, **meta.get("markets", {}).get(name, {}), "symbol": name}


def grids_of(meta: Mapping[str, object]) -> tuple[Grid, Grid]:
    """Return the grids of decision bars and of base bars that the features stage names.

    Before release 0.9.0 it named timeframes alone, and every market was folded as one open day and night.
    """
    decision, base = meta.get("grid"), meta.get("base_grid")
    if isinstance(decision, Mapping) and isinstance(base, Mapping):
        return Grid.from_dict(decision), Grid.from_dict(base)
    return Grid(str(meta["decision_timeframe"])), Grid(str(meta["base_timeframe"]))


def timings_file(folder: Path) -> Path:
    """Return where the fit whose stage output is `folder` keeps what it took: next to it, because no two fits take the
    same time, and the same fit has the same digest."""
    return folder.parent / "timings" / f"{folder.name}.json"


def fitted_on(folder: Path) -> str:
    """Return the type of the CPU of the fit whose stage output is `folder`; "unknown" of a release before 0.17."""
    file = timings_file(folder)
    return str(json.loads(file.read_text()).get("cpu", "unknown")) if file.is_file() else "unknown"


def read_timings(folder: Path) -> JsonObject:
    """Return what the fit whose stage output is `folder` took: `seconds`, and `latency_ms` of one row; NaN if unknown.

    Up to release 0.11 both are in its `fit.json`.
    """
    file, before = timings_file(folder), folder / "fit.json"
    held = json.loads((file if file.is_file() else before).read_text())
    return {name: float(held.get(name, math.nan)) for name in ("latency_ms", "seconds")}
