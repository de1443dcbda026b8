"""Parts of a served model besides its weights: calibration, novelty, ONNX session, identity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnxruntime

from pipelines.contracts import Floats
from pipelines.errors import BadShape

_EPS = 1e-7
LIVE_ROWS = 256  # the most rows that one live batch can have: schemas.MAX_SYMBOLS
TOGETHER = (16, 4)  # rows of one call: more than 16 are no faster a row, and fewer symbols should gain as well
_TRIED = 4  # calls of the largest size that are compared


class BundleIdentity(TypedDict):
    """Name a loaded bundle: its family, the registry's version and the manifest's sha256."""

    family: str
    version: str
    digest: str


def logit(p: Floats) -> Floats:
    """Return log-odds of probabilities p, which are first clipped to [1e-7, 1 - 1e-7]."""
    q = np.minimum(np.maximum(p, _EPS), 1 - _EPS)  # on one row np.clip takes longer than everything else here
    return np.asarray(np.log(q / (1 - q)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrate a raw probability by Platt scaling, with the lower bound that position sizing uses.

    p      = sigmoid(slope · logit(raw) + shift)
    p_low  = sigmoid of the lower 95 % bound of that line, from the covariance of (slope, shift)
    """

    slope: float
    shift: float
    covariance: Floats  # (2, 2)

    def calibrate(self, raw: Floats) -> tuple[Floats, Floats]:
        """Return (p, p_low), (n,) each, of raw probabilities (n,)."""
        x = logit(raw)
        (slope, both), (_, shift) = self.covariance.tolist()
        line = self.slope * x + self.shift
        error = np.sqrt(np.maximum(slope * x * x + 2.0 * both * x + shift, 0.0))
        return 1.0 / (1.0 + np.exp(-line)), 1.0 / (1.0 + np.exp(-(line - 1.96 * error)))


def stacked(lines: Sequence[Calibration]) -> Floats:
    """Return (classes, 5): slope, shift and covariance of each class's line, as `calibrate_all` reads them."""
    return np.array([[c.slope, c.shift, c.covariance[0, 0], c.covariance[0, 1], c.covariance[1, 1]] for c in lines])


def calibrate_all(lines: Floats, raw: Floats) -> tuple[Floats, Floats]:
    """Return (p, p_low) of raw (…, n, classes), by lines (…, 1, classes, 5): `Calibration.calibrate` in one pass."""
    slope, shift, both_slopes, mixed, both_shifts = np.moveaxis(lines, -1, 0)
    x = logit(raw)
    line = slope * x + shift
    error = np.sqrt(np.maximum(both_slopes * x * x + 2.0 * mixed * x + both_shifts, 0.0))
    return 1.0 / (1.0 + np.exp(-line)), 1.0 / (1.0 + np.exp(-(line - 1.96 * error)))


@dataclass(frozen=True, slots=True)
class Novelty:
    """Measure the Mahalanobis distance from the training rows; beyond `limit` the model abstains (M6)."""

    mean: Floats  # (k,)
    precision: Floats  # (k, k)
    limit: float

    def distance(self, rows: Floats) -> Floats:
        """Return (n,) distances of rows (n, k); NaN where a column is missing."""
        away = rows - self.mean
        return np.asarray(np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, self.precision, away), 0.0)))


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file for inference on one CPU thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # single rows: more threads cost more time than they save
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def probabilities_of(session: onnxruntime.InferenceSession, rows: Floats, together: Sequence[int] = ()) -> Floats:
    """Return the output `probabilities` of a session, float32, of rows (n, …).

    The rows of a live batch go through it one by one, or so many `together` as `equal_sizes` found: a matrix product
    may round otherwise at another number of rows, and the answer for a symbol must not depend on which others closed
    with it. A whole history goes in one call.
    """
    name, inputs, at = session.get_inputs()[0].name, rows.astype(np.float32), 0
    if not 1 < len(rows) <= LIVE_ROWS:
        return np.asarray(session.run(["probabilities"], {name: inputs})[0])
    parts = []
    while at < len(rows):
        size = next((size for size in together if size <= len(rows) - at), 1)
        parts.append(session.run(["probabilities"], {name: inputs[at : at + size]})[0])
        at += size
    return np.concatenate(parts)


def equal_sizes(session: onnxruntime.InferenceSession, rows: Floats) -> tuple[int, ...]:
    """Return which of TOGETHER this session answers on this CPU as row by row, to the bit; the largest first.

    rows  (n, …) finite examples, none = no size. They are varied, so that sums that are added up in another order show:
          the order depends on the number of rows and on the CPU, not on the values
    """
    if not len(rows):
        return ()
    n = _TRIED * max(TOGETHER)
    varied = rows[np.arange(n) % len(rows)] * (1.0 + np.arange(n).reshape(-1, *[1] * (rows.ndim - 1)) / n)
    alone = probabilities_of(session, varied[:LIVE_ROWS])
    return tuple(
        size for size in TOGETHER if probabilities_of(session, varied[:LIVE_ROWS], [size]).tobytes() == alone.tobytes()
    )


def read_novelty(path: Path) -> Novelty:
    """Return the novelty measure stored in `novelty.npz`."""
    with np.load(path, allow_pickle=False) as f:
        return Novelty(f["mean"], f["precision"], float(f["limit"]))


def calibration_from_json(values: Mapping[str, Any]) -> Calibration:
    """Return the calibration that `as_json` wrote."""
    return Calibration(values["slope"], values["shift"], np.array(values["covariance"]))


def as_json(calibration: Calibration) -> dict[str, object]:
    """Return a calibration as JSON-ready values."""
    return {"slope": calibration.slope, "shift": calibration.shift, "covariance": calibration.covariance.tolist()}


def abstentions(
    newest: Floats, columns: tuple[str, ...], novelty: Novelty
) -> tuple[list[str], list[str | None], Floats]:
    """Return (status, reason, distance) of n rows by their newest bar (n, k): a missing or novel row abstains (M6)."""
    n = len(newest)
    status, reason = ["OK"] * n, [None] * n  # type: list[str], list[str | None]
    distance = novelty.distance(newest)
    for i in np.flatnonzero(~(distance <= novelty.limit)):  # also NaN: a value is missing or infinite
        missing = ~np.isfinite(newest[i])
        status[i] = "ABSTAIN"
        reason[i] = (
            f"MISSING_FEATURE:{columns[int(missing.argmax())]}"
            if missing.any()
            else f"NOVEL:{distance[i]:.2f}>{novelty.limit:.2f}"
        )
    return status, reason, distance


def check_shape(family: str, rows: Floats, steps: int, columns: tuple[str, ...]) -> None:
    """Raise BadShape unless rows are (n, columns), or (n, steps, columns) for a model of several steps."""
    expected = (len(columns),) if steps == 1 else (steps, len(columns))
    if rows.shape[1:] != expected:
        raise BadShape(
            f"{family}: rows {rows.shape}, expected (n, {', '.join(map(str, expected))}): {', '.join(columns)}"
        )
