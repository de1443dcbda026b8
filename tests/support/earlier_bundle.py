"""Bundles as release 0.5.0 wrote them."""

import json
from pathlib import Path

from pipelines.models.export import seal_bundle

KINDS = {"ensemble": "committee"}
KEYS = {"loss_params": "terms"}
REGIME_KEYS = {"labels": "words", "unavailable": "silent"}


def as_release_0_5(bundle: Path, family: str) -> str:
    """Rewrite the schema of a bundle of today with the names of 0.5.0, seal it, and return its digest."""
    source = bundle / "schema.json"
    schema = {KEYS.get(key, key): value for key, value in json.loads(source.read_text()).items()}
    schema["kind"] = KINDS.get(schema["kind"], schema["kind"])
    if "regime" in schema:
        schema["regime"] = {REGIME_KEYS.get(key, key): value for key, value in schema["regime"].items()}
    source.write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")
    return seal_bundle(bundle, family)
