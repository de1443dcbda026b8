"""What a family brings to training. Serving never sees this; it sees `contracts.Model`.

A family is one `Recipe`: how to fit its native model, how to read a probability from it, how to export it. Folds,
calibration, baselines, novelty, bundles, registry, gate and slots are the same for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import Bools, Floats
from pipelines.settings import Params

Fit = Callable[[Floats, Floats, Floats, Params], Any]  # rows (n, k), y (n,), weight (n,), params → native model
Raw = Callable[[Any, Floats], Floats]  # native model, rows (n, k) → (n,) probability of class 1, uncalibrated
ToOnnx = Callable[[Any, int], bytes]  # native model, k → ONNX bytes with an output named "probabilities"


@dataclass(frozen=True, slots=True)
class Recipe:
    family: str
    title: str
    candidate_columns: tuple[str, ...]
    fit: Fit
    raw: Raw
    to_onnx: ToOnnx


def present_columns(rows: Floats, names: tuple[str, ...]) -> tuple[Bools, dict[str, str]]:
    """The schema rule: columns wholly absent from the training snapshot are dropped and named; so are constant ones,
    which can teach nothing. Returns (mask of kept columns, dropped column → reason)."""
    keep = np.ones(len(names), dtype=bool)
    dropped: dict[str, str] = {}
    for j, name in enumerate(names):
        values = rows[np.isfinite(rows[:, j]), j]
        if len(values) == 0:
            dropped[name] = "absent: no value in the training snapshot"
        elif values.min() == values.max():
            dropped[name] = f"constant at {values[0]:g} in the training snapshot"
        keep[j] = name not in dropped
    return keep, dropped
