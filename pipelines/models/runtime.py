"""Load a verified bundle and predict: numpy, onnxruntime, our kernels. This is all that serving imports from models.

A bundle is a folder named by nothing but its content: `manifest.json` lists every file with its sha256, and the
sha256 of the manifest itself is the model's digest, which the registry and the promotion ledger hold. A file the
manifest does not name, a hash that differs, or a kind of file that could carry code is refused (law L6).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Model
from pipelines.errors import BundleError, DigestMismatch, GoldenMismatch, UnsafeBundle
from pipelines.models import ensemble, tabular
from pipelines.models.regime import served as regime

MANIFEST = "manifest.json"
SAFE_SUFFIXES = {".onnx", ".json", ".npz", ".md"}
GOLDEN_TOLERANCE = 1e-6
# how a bundle is served: `schema.kind` → loader(path, identity, schema, golden); identity = family, version, digest
KINDS: dict[str, Callable[[Path, dict[str, Any], dict[str, Any], dict[str, Any]], Model]] = {
    "tabular": tabular.load,
    "committee": ensemble.load,
    "regime": regime.load,
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_manifest(path: Path, expected_digest: str | None) -> tuple[dict[str, Any], str]:
    """Verify every byte of a bundle. Returns (manifest, digest); raises DigestMismatch, UnsafeBundle, BundleError."""
    source = path / MANIFEST
    if not source.is_file():
        raise BundleError(
            f"{path}: no {MANIFEST}; a bundle is written by training, run `bellwether retrain` to make one"
        )
    raw = source.read_bytes()
    digest = sha256(raw)
    if expected_digest is not None and digest != expected_digest:
        raise DigestMismatch(f"{path}: manifest digest {digest[:12]}, the registry promised {expected_digest[:12]}")
    manifest: dict[str, Any] = json.loads(raw)
    listed = set(manifest["files"])
    found = {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} - {MANIFEST}
    if unsafe := {name for name in listed | found if Path(name).suffix not in SAFE_SUFFIXES}:
        raise UnsafeBundle(f"{path}: {sorted(unsafe)} could carry code; serving loads only {sorted(SAFE_SUFFIXES)}")
    if found != listed:
        raise UnsafeBundle(f"{path}: unlisted {sorted(found - listed)}, missing {sorted(listed - found)}")
    for name, promised in manifest["files"].items():
        if (actual := sha256((path / name).read_bytes())) != promised:
            raise DigestMismatch(f"{path / name}: sha256 {actual[:12]}, the manifest says {promised[:12]}")
    return manifest, digest


def load_bundle(path: Path, expected_digest: str | None, version: str = "") -> Model:
    """Verify and load. Raises BundleError and its children; never unpickles."""
    manifest, digest = read_manifest(path, expected_digest)
    schema = json.loads((path / "schema.json").read_text())
    if schema.get("kind") not in KINDS:
        raise BundleError(f"{path}: schema.kind {schema.get('kind')!r} is not served here; known: {', '.join(KINDS)}")
    with np.load(path / "golden.npz", allow_pickle=False) as f:
        golden = {name: f[name] for name in f.files}
    identity = {"family": manifest["family"], "version": version, "digest": digest}
    return KINDS[schema["kind"]](path, identity, schema, golden)


def check_golden(model: Model) -> float:
    """Largest difference on the golden rows. Raises GoldenMismatch beyond 1e-6 or on a different status or label."""
    told = model.golden
    answer = model.predict(told["rows"])
    who = f"{model.family} {model.digest[:12]}"
    if answer.status != told["status"].tolist():
        raise GoldenMismatch(f"{who}: statuses {answer.status}, golden {told['status'].tolist()}")
    if answer.label is not None and [word or "" for word in answer.label] != told["label"].tolist():
        raise GoldenMismatch(f"{who}: labels {answer.label}, golden {told['label'].tolist()}")
    gap = float(np.nanmax(np.abs(answer.p - told["p"]), initial=0.0))
    if gap > GOLDEN_TOLERANCE:
        raise GoldenMismatch(f"{who}: golden rows differ by {gap:.2e}, limit {GOLDEN_TOLERANCE:.0e}")
    return gap
