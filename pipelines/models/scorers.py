"""Open the model files of a bundle, each by the runtime that its schema names.

A decision is replayed with the runtime of the bundle that made it, so none is removed while such a bundle is kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import onnxruntime

from pipelines.contracts import Floats
from pipelines.errors import BundleError
from pipelines.models.calibration_and_novelty import equal_sizes, open_session, probabilities_of
from pipelines.models.compiled_trees import read_trees

ONNX: Final = "onnxruntime"
COMPILED: Final = "compiled-1"
WRITTEN: Final = {".onnx": ONNX, ".npz": COMPILED}  # suffix of a model file that training writes → its runtime


class Scorer(Protocol):
    """Predict uncalibrated probabilities by one model file."""

    def probabilities(self, rows: Floats) -> Floats:
        """Return (n, classes) of rows (n, …); of two classes (n, 1) of the second, or (n, 2).

        The answer for a row is the same whichever others come with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class OnnxScorer:
    """Run an ONNX graph with an input of rows and an output "probabilities", in float32.

    together  how many rows it may take in one call, see `calibration_and_novelty.equal_sizes`
    """

    session: onnxruntime.InferenceSession
    together: tuple[int, ...] = ()

    def probabilities(self, rows: Floats) -> Floats:
        """Return the graph's output, float32 numbers as float64."""
        return probabilities_of(self.session, rows, self.together).astype(np.float64)


def open_onnx(path: Path, columns: int) -> OnnxScorer:
    """Open an ONNX file. Raises BundleError if its last axis has another length than `columns`."""
    session = open_session(path)
    width = session.get_inputs()[0].shape[-1]
    if isinstance(width, int) and width != columns:
        raise BundleError(f"{path}: reads {width} columns, the model has {columns}. Train the model again.")
    return OnnxScorer(session)


# `runtime` of a model in schema.json → loader(file, number of columns of its rows)
RUNTIMES: dict[str, Callable[[Path, int], Scorer]] = {ONNX: open_onnx, COMPILED: read_trees}


def for_batches(scorer: Scorer, rows: Floats) -> Scorer:
    """Return a scorer that takes several rows in one call where that is measured to change no bit on this CPU.

    rows  (n, …) examples of what it reads; those with a missing value are not used
    """
    if not isinstance(scorer, OnnxScorer):
        return scorer  # trees walk row by row
    complete = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    return OnnxScorer(scorer.session, equal_sizes(scorer.session, rows[complete]))


def model_entry(file: str) -> dict[str, str]:
    """Return what a schema says of a model file of this release."""
    return {"file": file, "runtime": WRITTEN[Path(file).suffix]}


def open_scorer(folder: Path, model: Mapping[str, Any], columns: int) -> Scorer:
    """Return the scorer of `model`, its `file` and `runtime` in the schema of the bundle in `folder`.

    Raises  BundleError for a runtime of another release, a file that is no such model, or other columns
    """
    runtime = model.get("runtime", ONNX)  # up to 0.13.0 there was no other, and bundles named none
    if runtime not in RUNTIMES:
        raise BundleError(
            f"{folder}: the runtime {runtime!r} of {model['file']} is unknown to this release, which has "
            f"{', '.join(RUNTIMES)}. Train the model again with this release."
        )
    return RUNTIMES[runtime](folder / model["file"], columns)
