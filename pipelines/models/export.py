"""Write bundles: weights, calibration, novelty, schema, golden rows, model card and hashes.

A bundle is written once by training, compared with the native model there, and never changed: its digest is its name.
"""

import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Arrays, Floats
from pipelines.models.base import Export
from pipelines.models.calibration_and_novelty import Novelty
from pipelines.models.runtime import load_bundle
from pipelines.sealed_folder import seal

LIBRARIES = ("numpy", "onnxruntime", "scikit-learn", "xgboost", "torch")
GOLDEN_ROWS = 16


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def json_bytes(content: object) -> bytes:
    """Return `content` as indented JSON with sorted keys; the same content gives the same bytes."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def npz_bytes(**arrays: Any) -> bytes:
    """Return the bytes of an .npz; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def runtime() -> dict[str, str]:
    """Return library → version under which a bundle is made and its golden rows are predicted, of those installed."""
    installed = {name: version(name) for name in LIBRARIES if any(distributions(name=name))}
    return {"python": platform.python_version()} | installed


def write_bundle(
    path: Path,
    *,
    family: str,
    export: Export,
    novelty: Novelty,
    schema: Mapping[str, object],
    card: str,
    inputs: Floats,
    reference: Mapping[str, bytes] | None = None,
) -> str:
    """Write a bundle into the folder `path` and return its digest.

    schema     at least `columns` (order of the inputs) and `dropped` (column → why it was dropped)
    inputs     training rows (n, k) or (n, steps, k), newest bar finite; evenly spaced ones become golden rows, whose
               predictions are those of the loaded export
    reference  files of the drift reference, as `reference.reference_files` gives them; None: inputs are not watched
    """
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {**export.files, **(reference or {})}.items():
        (path / name).write_bytes(content)
    (path / "novelty.npz").write_bytes(
        npz_bytes(mean=novelty.mean, precision=novelty.precision, limit=np.float64(novelty.limit))
    )
    write_json(path / "schema.json", {**schema, **export.schema, "kind": export.kind, "runtime": runtime()})
    (path / "card.md").write_text(card)
    chosen = inputs[np.linspace(0, len(inputs) - 1, GOLDEN_ROWS).astype(int)].copy()
    chosen[-1].reshape(-1)[-1] = np.nan  # the last golden row must abstain: an export that predicts it is broken
    (path / "golden.npz").write_bytes(npz_bytes(rows=chosen))
    seal_bundle(path, family)
    predicted = load_bundle(path, None).predict(chosen)
    golden: Arrays = {"rows": chosen, "p": predicted.p, "status": np.array(predicted.status)}
    if predicted.label is not None:
        golden["label"] = np.array([label or "" for label in predicted.label])
    (path / "golden.npz").write_bytes(npz_bytes(**golden))
    return seal_bundle(path, family)


def seal_bundle(path: Path, family: str) -> str:
    """Write the manifest of a bundle's files and return its digest."""
    return seal(path, {"family": family, "format": 2})
