"""Parts of a served model besides its weights: calibration, novelty, ONNX session, identity.

What every live row goes through is compiled: of one row, a call of numpy takes longer than its arithmetic.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import onnxruntime

from pipelines.compiled import kernel
from pipelines.contracts import Bools, Floats
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


@kernel
def platt(raw: float, line: Floats) -> tuple[float, float]:
    """Return (p, p_low) of an uncalibrated probability, as `Calibration` states them; line (5,) of `stacked`."""
    x = min(max(raw, _EPS), 1.0 - _EPS) if raw == raw else raw
    x = math.log(x / (1.0 - x))
    log_odds = line[0] * x + line[1]
    error = math.sqrt(max(line[2] * x * x + 2.0 * line[3] * x + line[4], 0.0))
    return 1.0 / (1.0 + math.exp(-log_odds)), 1.0 / (1.0 + math.exp(-(log_odds - 1.96 * error)))


@kernel(nogil=True)
def platt_all(raw: Floats, line: Floats, p: Floats, low: Floats) -> None:
    """Fill p and low (n,) by `platt` of raw (n,)."""
    for i in range(raw.shape[0]):
        p[i], low[i] = platt(raw[i], line)


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
        p, low = np.empty(len(raw)), np.empty(len(raw))
        platt_all(np.ascontiguousarray(raw, np.float64), stacked([self])[0], p, low)
        return p, low


def stacked(lines: Sequence[Calibration]) -> Floats:
    """Return (classes, 5): slope, shift and covariance of each class's line, as `combine` reads them."""
    return np.array([[c.slope, c.shift, c.covariance[0, 0], c.covariance[0, 1], c.covariance[1, 1]] for c in lines])


@kernel(nogil=True)
def combine(raw: Floats, lines: Floats, weights: Floats, absent: Bools, members: Floats, p: Floats, low: Floats) -> int:
    """Fill members, p and low from what members say: each calibrated, and their weighted mean; return how many rows
    have a class without a p.

    raw      (members, n, classes) uncalibrated; NaN where a member has none
    lines    (members, classes, 5) of `stacked`
    weights  (members,) as of `directional_ensemble.average`, whose mean it is
    absent   (n, classes): p of a class that is absent is 0; in a row without any class no member is needed for that.
             (n, 0) where every class is always present
    members  (members, n, classes) calibrated; p, low (n, classes), NaN where no member with a weight has one
    """
    count, n, classes = raw.shape
    without = 0
    for i in range(n):
        silent = absent.shape[1] > 0
        for c in range(absent.shape[1]):
            silent = silent and absent[i, c]
        known = True
        for c in range(classes):
            total, mean, mean_low = 0.0, 0.0, 0.0
            for m in range(count):
                x = raw[m, i, c]
                if silent or (absent.shape[1] > 0 and absent[i, c] and x == x):
                    value, bound = 0.0, 0.0
                elif x != x:
                    members[m, i, c] = np.nan
                    continue
                else:
                    value, bound = platt(x, lines[m, c])
                members[m, i, c] = value
                total += weights[m]
                mean += value * weights[m]
                mean_low += bound * weights[m]
            if total > 0.0:
                p[i, c], low[i, c] = mean / total, mean_low / total
            else:
                p[i, c] = low[i, c] = np.nan
                known = False
        if not known:
            without += 1
    return without


@kernel(nogil=True)
def mahalanobis(away: Floats, precision: Floats, out: Floats) -> None:
    """Fill out (n,) with the distances of rows whose differences from the mean are away (n, k); precision (k, k)."""
    for i in range(away.shape[0]):
        total = 0.0
        for j in range(away.shape[1]):
            along = 0.0
            for k in range(away.shape[1]):
                along += precision[j, k] * away[i, k]
            total += away[i, j] * along
        out[i] = math.sqrt(max(total, 0.0)) if total == total else np.nan


@dataclass(frozen=True, slots=True)
class Novelty:
    """Measure the Mahalanobis distance from the training rows; beyond `limit` the model abstains (M6)."""

    mean: Floats  # (k,)
    precision: Floats  # (k, k)
    limit: float

    def distance(self, rows: Floats) -> Floats:
        """Return (n,) distances of rows (n, k); NaN where a column is missing."""
        out = np.empty(len(rows))
        mahalanobis(np.ascontiguousarray(rows - self.mean), np.ascontiguousarray(self.precision), out)
        return out


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


class Admitted(NamedTuple):
    """Hold which of n rows a model answers: status and reason as in Predictions, and the distance of each."""

    status: list[str]
    reason: list[str | None]
    distance: Floats
    accepted: Bools
    every: bool  # all of them are accepted


def admitted(newest: Floats, columns: tuple[str, ...], novelty: Novelty) -> Admitted:
    """Return which of n rows are answered, by their newest bar (n, k): a missing or novel row abstains (M6)."""
    n = len(newest)
    status, reason = ["OK"] * n, [None] * n  # type: list[str], list[str | None]
    distance = novelty.distance(newest)
    accepted = distance <= novelty.limit  # not where it is NaN: a value is missing or infinite
    if every := np.count_nonzero(accepted) == n:
        return Admitted(status, reason, distance, accepted, every)
    for i in np.flatnonzero(~accepted):
        missing = ~np.isfinite(newest[i])
        status[i] = "ABSTAIN"
        reason[i] = (
            f"MISSING_FEATURE:{columns[int(missing.argmax())]}"
            if missing.any()
            else f"NOVEL:{distance[i]:.2f}>{novelty.limit:.2f}"
        )
    return Admitted(status, reason, distance, accepted, every)


def check_shape(family: str, rows: Floats, steps: int, columns: tuple[str, ...]) -> None:
    """Raise BadShape unless rows are (n, columns), or (n, steps, columns) for a model of several steps."""
    expected = (len(columns),) if steps == 1 else (steps, len(columns))
    if rows.shape[1:] != expected:
        raise BadShape(
            f"{family}: rows {rows.shape}, expected (n, {', '.join(map(str, expected))}): {', '.join(columns)}"
        )
