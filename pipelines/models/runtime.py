"""Load a verified bundle and predict: numpy and onnxruntime only. This is all that serving imports from models.

A bundle is a folder named by nothing but its content: `manifest.json` lists every file with its sha256, and the
sha256 of the manifest itself is the model's digest, which the registry and the promotion ledger hold. A file the
manifest does not name, a hash that differs, or a kind of file that could carry code is refused (law L6).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipelines.contracts import Floats, Predictions
from pipelines.errors import BadShape, BundleError, DigestMismatch, GoldenMismatch, UnsafeBundle

MANIFEST = "manifest.json"
SAFE_SUFFIXES = {".onnx", ".json", ".npz", ".md"}
GOLDEN_TOLERANCE = 1e-6
_EPS = 1e-7


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


def logit(p: Floats) -> Floats:
    q = np.minimum(np.maximum(p, _EPS), 1 - _EPS)  # np.clip costs more than all the rest on one row
    return np.asarray(np.log(q / (1 - q)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling of the model's own probability, and the lower bound that sizing may rely on.

    p      = sigmoid(slope · logit(raw) + shift)
    p_low  = sigmoid of the lower 95 % bound of that line, from the covariance of (slope, shift)
    """

    slope: float
    shift: float
    covariance: Floats  # (2, 2)

    def answer(self, raw: Floats) -> tuple[Floats, Floats]:
        """(p, p_low), (n,) each."""
        x = logit(raw)
        (slope, both), (_, shift) = self.covariance.tolist()
        line = self.slope * x + self.shift
        error = np.sqrt(np.maximum(slope * x * x + 2.0 * both * x + shift, 0.0))
        return 1.0 / (1.0 + np.exp(-line)), 1.0 / (1.0 + np.exp(-(line - 1.96 * error)))

    def apply(self, raw: Floats) -> Floats:
        return self.answer(raw)[0]

    def lower(self, raw: Floats) -> Floats:
        return self.answer(raw)[1]


@dataclass(frozen=True, slots=True)
class Novelty:
    """Mahalanobis distance from the training rows; beyond `limit` the model abstains (M6)."""

    mean: Floats  # (k,)
    precision: Floats  # (k, k)
    limit: float

    def distance(self, rows: Floats) -> Floats:
        """(n,) distances; NaN where a column is missing."""
        away = rows - self.mean
        return np.asarray(np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, self.precision, away), 0.0)))


@dataclass(frozen=True, slots=True)
class TabularModel:
    """One row of named columns in, one calibrated probability out (contracts.Model)."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    session: onnxruntime.InferenceSession
    calibration: Calibration
    novelty: Novelty
    golden: dict[str, Any]
    schema: dict[str, Any]

    def raw(self, rows: Floats) -> Floats:
        """(n,) probability of class 1 as the exported model says it, before calibration."""
        name = self.session.get_inputs()[0].name
        answer = self.session.run(["probabilities"], {name: rows.astype(np.float32)})[0]
        return np.asarray(answer[:, 1], dtype=np.float64)

    def predict(self, rows: Floats) -> Predictions:
        if rows.ndim != 2 or rows.shape[1] != len(self.columns):
            raise BadShape(
                f"{self.family}: rows {rows.shape}, expected (n, {len(self.columns)}): {', '.join(self.columns)}"
            )
        n = len(rows)
        status, reason = ["OK"] * n, [None] * n  # type: list[str], list[str | None]
        distance = self.novelty.distance(rows)
        sure = distance <= self.novelty.limit  # False for NaN: a value is missing or infinite
        if n and sure.all():  # the everyday case of one live row: no masks, no copies
            return Predictions(*self.calibration.answer(self.raw(rows)), status, reason, distance, self.digest)
        for i in np.flatnonzero(~sure):
            missing = ~np.isfinite(rows[i])
            if missing.any():
                status[i], reason[i] = "ABSTAIN", f"MISSING_FEATURE:{self.columns[int(missing.argmax())]}"
            else:
                status[i], reason[i] = "ABSTAIN", f"NOVEL:{distance[i]:.2f}>{self.novelty.limit:.2f}"
        p, low = np.full(n, np.nan), np.full(n, np.nan)
        if sure.any():
            p[sure], low[sure] = self.calibration.answer(self.raw(rows[sure]))
        return Predictions(p, low, status, reason, distance, self.digest)


def load_bundle(path: Path, expected_digest: str | None, version: str = "") -> TabularModel:
    """Verify and load. Raises BundleError and its children; never unpickles."""
    manifest, digest = read_manifest(path, expected_digest)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # single rows: threads cost more than they give
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    schema = json.loads((path / "schema.json").read_text())
    calibration = json.loads((path / "calibration.json").read_text())
    with np.load(path / "novelty.npz", allow_pickle=False) as novelty:
        gate = Novelty(novelty["mean"], novelty["precision"], float(novelty["limit"]))
    return TabularModel(
        family=manifest["family"],
        version=version,
        digest=digest,
        columns=tuple(schema["columns"]),
        session=session,
        calibration=Calibration(calibration["slope"], calibration["shift"], np.array(calibration["covariance"])),
        novelty=gate,
        golden=json.loads((path / "golden.json").read_text()),
        schema=schema,
    )


def check_golden(model: TabularModel) -> float:
    """Largest difference on the golden rows. Raises GoldenMismatch beyond 1e-6 or on a different status."""
    rows = np.array([[np.nan if v is None else v for v in row] for row in model.golden["rows"]], dtype=np.float64)
    answer = model.predict(rows)
    if answer.status != model.golden["status"]:
        raise GoldenMismatch(
            f"{model.family} {model.digest[:12]}: statuses {answer.status}, golden {model.golden['status']}"
        )
    expected = np.array([np.nan if v is None else v for v in model.golden["p"]], dtype=np.float64)
    gap = float(np.nanmax(np.abs(answer.p - expected), initial=0.0))
    if gap > GOLDEN_TOLERANCE:
        raise GoldenMismatch(
            f"{model.family} {model.digest[:12]}: golden rows differ by {gap:.2e}, limit {GOLDEN_TOLERANCE:.0e}"
        )
    return gap
