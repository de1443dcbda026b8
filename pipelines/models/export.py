"""Native model → bundle: ONNX weights, calibrator, novelty gate, schema, golden vectors, model card, hashes.

Written once at training time, compared with the native model there, and never changed: the digest is its name.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats
from pipelines.models.runtime import MANIFEST, Calibration, Novelty, load_bundle, sha256

GOLDEN_ROWS = 16


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_bundle(
    path: Path,
    *,
    family: str,
    onnx: bytes,
    calibration: Calibration,
    novelty: Novelty,
    schema: dict[str, Any],
    card: str,
    rows: Floats,
) -> str:
    """Write a bundle into the empty folder `path` and return its digest.

    schema  at least `columns` (order of the inputs) and `dropped` (column → why it is not there)
    rows    (n, k) finite training rows, of which evenly spaced ones become golden inputs; their answers are taken
            from the loaded export itself, after it was compared with the native model
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.onnx").write_bytes(onnx)
    write_json(
        path / "calibration.json",
        {
            "slope": calibration.slope,
            "shift": calibration.shift,
            "covariance": calibration.covariance.tolist(),
        },
    )
    np.savez(path / "novelty.npz", mean=novelty.mean, precision=novelty.precision, limit=np.float64(novelty.limit))
    write_json(path / "schema.json", schema)
    (path / "card.md").write_text(card)
    write_json(path / "golden.json", {"rows": [], "p": [], "status": []})
    _seal(path, family)
    loaded = load_bundle(path, None)
    chosen = rows[np.linspace(0, len(rows) - 1, GOLDEN_ROWS).astype(int)].copy()
    chosen[-1, 0] = np.nan  # the last golden row must abstain: an export that answers it is broken
    answer = loaded.predict(chosen)
    write_json(
        path / "golden.json",
        {
            "rows": [[None if np.isnan(v) else v for v in row] for row in chosen.tolist()],
            "p": [None if np.isnan(v) else v for v in answer.p.tolist()],
            "status": answer.status,
        },
    )
    return _seal(path, family)


def _seal(path: Path, family: str) -> str:
    files = {
        str(f.relative_to(path)): sha256(f.read_bytes())
        for f in sorted(path.rglob("*"))
        if f.is_file() and f.name != MANIFEST
    }
    manifest = json.dumps({"family": family, "format": 1, "files": files}, indent=1, sort_keys=True).encode()
    (path / MANIFEST).write_bytes(manifest)
    return sha256(manifest)
