"""Load a verified bundle with numpy, onnxruntime and our kernels only. Serving imports nothing heavier from models.

A bundle is a folder identified by its content: `manifest.json` lists every file with its sha256, and the sha256 of the
manifest is the model's digest, which the registry and the promotion ledger store. A file that the manifest does not
list, a hash that differs, and a kind of file that could carry code are refused (law L6).
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines import sealed_folder
from pipelines.contracts import Arrays, JsonObject, Model
from pipelines.errors import BundleError, GoldenMismatch, UnsafeBundle
from pipelines.models import ensemble, tabular
from pipelines.models.calibration_and_novelty import BundleIdentity
from pipelines.models.regime import served as regime
from pipelines.renamed_keys import current_names, current_word
from pipelines.sealed_folder import MANIFEST, files_in

_FIX = "Restore it from a backup, or run `bellwether retrain`."
SAFE_SUFFIXES = {".onnx", ".json", ".npz", ".md"}
GOLDEN_TOLERANCE = 1e-6  # of a probability: other CPUs round float32 inference differently, by less than this
CARD_TOLERANCES = {"fp32": 1e-5, "bf16": 0.02}  # the same of a card, by the precision of its networks
# `kind` of schema.json → loader(path, identity, schema, golden)
KINDS: dict[str, Callable[[Path, BundleIdentity, JsonObject, Arrays], Model]] = {
    "tabular": tabular.load,
    "ensemble": ensemble.load,
    "regime": regime.load,
}


def read_manifest(path: Path, expected_digest: str | None) -> tuple[JsonObject, str]:
    """Verify every byte of a bundle and return (manifest, digest).

    Raises  BundleError without a manifest; DigestMismatch on another hash; UnsafeBundle on a file that is unlisted,
            missing, or of a kind that could carry code
    """
    try:
        manifest, digest = sealed_folder.read_manifest(path, expected_digest, _FIX)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path}: no {MANIFEST}; training writes bundles, run `bellwether retrain`") from error
    listed, found = set(manifest["files"]), files_in(path)
    if unsafe := {name for name in listed | found if Path(name).suffix not in SAFE_SUFFIXES}:
        raise UnsafeBundle(f"{path}: {sorted(unsafe)} could carry code; serving loads only {sorted(SAFE_SUFFIXES)}")
    if found != listed:
        raise UnsafeBundle(f"{path}: unlisted {sorted(found - listed)}, missing {sorted(listed - found)}")
    sealed_folder.read_files(path, manifest, _FIX)
    return manifest, digest


def load_bundle(path: Path, expected_digest: str | None, version: str = "") -> Model:
    """Verify and load a bundle of this or an earlier release; never unpickles.

    Raises  BundleError and its children
    """
    manifest, digest = read_manifest(path, expected_digest)
    schema = current_names("bundle schema", json.loads((path / "schema.json").read_text()))
    schema["kind"] = current_word(str(schema.get("kind")))
    if schema["kind"] not in KINDS:
        raise BundleError(
            f"{path}: schema.kind {schema['kind']!r} is unknown to this release, which serves {', '.join(KINDS)}. "
            "Train the model again with this release."
        )
    with np.load(path / "golden.npz", allow_pickle=False) as f:
        golden = {name: f[name] for name in f.files}
    identity = BundleIdentity(family=manifest["family"], version=version, digest=digest)
    return KINDS[schema["kind"]](path, identity, schema, golden)


def tolerance_of(device: str) -> float:
    """Return how far a probability may lie from that of another CPU; `device` as in Predictions."""
    return GOLDEN_TOLERANCE if device == "cpu" else CARD_TOLERANCES[device.split()[-1]]


def check_golden(model: Model) -> float:
    """Return the largest difference of p on the golden rows, computed where the model runs.

    A label may differ where a golden p is so near its threshold that rounding decides.
    Raises  GoldenMismatch beyond the tolerance of that device, and on a different status or label
    """
    golden = model.golden
    predicted = model.predict(golden["rows"])
    tolerance = tolerance_of(predicted.device)
    name = f"{model.family} {model.digest[:12]}"
    if predicted.status != golden["status"].tolist():
        raise GoldenMismatch(f"{name}: statuses {predicted.status}, golden {golden['status'].tolist()}")
    if predicted.label is not None:
        threshold = model.schema.get("sure_from", np.nan)
        undecided = np.isclose(golden["p"], threshold, rtol=0.0, atol=tolerance).reshape(len(golden["p"]), -1)
        differs = np.array([label or "" for label in predicted.label]) != golden["label"]
        if (differs & ~undecided.any(axis=1)).any():
            raise GoldenMismatch(f"{name}: labels {predicted.label}, golden {golden['label'].tolist()}")
    gap = float(np.nanmax(np.abs(predicted.p - golden["p"]), initial=0.0))
    if gap > tolerance:
        raise GoldenMismatch(f"{name}: golden rows differ by {gap:.2e} on {predicted.device}, limit {tolerance:g}")
    return gap
