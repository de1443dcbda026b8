"""Put arms on the ledger of a home and into its generation file. No training library is loaded."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.contracts import JsonObject
from pipelines.settings import Settings
from pipelines.store import Promotion, Store
from serving.inference.generation import write_generation
from serving.service.home_store import open_store


def put_on_ledger(store: Store, families: Mapping[str, Mapping[str, JsonObject | None]], at: datetime) -> None:
    """Put the arms that a generation file names on the ledger: the gate's verdict on each, then the champion's move."""
    for family, arms in families.items():
        for arm in ("champion", "challenger"):
            if (entry := arms.get(arm)) is None:
                continue
            passed = entry.get("verdict") != "refused"
            line = Promotion(
                at, "benchmark", "challenge", family, "challenger", None, entry["version"], entry["digest"],
                entry.get("run_id"), entry.get("data_hash"), entry.get("git_commit"), passed, "benchmark",
            )  # fmt: skip
            store.add_promotion(line)
            if arm == "champion":
                store.add_promotion(replace(line, action="promote", arm="champion"))


def serve_arms(
    where: Settings, families: Mapping[str, Mapping[str, JsonObject | None]], warm: Mapping[str, Any] | None,
    at: datetime, assignments: Mapping[str, JsonObject] | None = None,
) -> int:  # fmt: skip
    """Put arms on the ledger of a home and name them in its generation file; return the generation.

    warm         entry of one published warm start, or symbol → entry; None: no symbol is live
    assignments  as of `write_generation`; the ledger must say the same
    """
    with contextlib.closing(open_store(where)) as store:
        put_on_ledger(store, families, at)
    return write_generation(where.serving_dir, families, by_symbol(warm), at, assignments)


def by_symbol(warm: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    """Return symbol → entry of published warm starts, given such a mapping, one entry, or None."""
    if not warm:
        return {}
    if "digest" not in warm:
        return dict(warm)
    return {str(json.loads((Path(warm["path"]) / "meta.json").read_text())["symbol"]): dict(warm)}
