"""A candidate's out-of-fold figures as points of charts: over time, and the outcome over the prediction."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.contracts import Point
from pipelines.evaluation.report import SIMPLEST, arrays_with_prefix, read_oof

PERIODS = 20  # of as many rows each, one after the other
BINS = 10  # of as many predictions each
PER_MILLE = 1000  # of a probability: a step is a whole number


def curves(folder: Path, family: str) -> Iterator[Point]:
    """Yield the points of a family's charts, from the stage output `folder`.

    walk_forward/loss, walk_forward/gain_over_<simplest>  mean of each of PERIODS, at the time of its last row
    calibration/observed_share  of each of BINS, over its mean predicted probability, per mille; of yes and no only
    """
    oof = read_oof(folder)
    loss, known, y, p = oof["loss"], oof["known"], oof["y"], oof["p"]
    lines = {"loss": loss}
    if (simplest := arrays_with_prefix(oof, "loss_").get(SIMPLEST.get(family, ""))) is not None:
        lines[f"gain_over_{SIMPLEST[family]}"] = simplest - loss
    parts = np.array_split(np.arange(len(loss)), min(PERIODS, len(loss)))
    for name, values in lines.items():
        for number, rows in enumerate(parts, 1):
            yield Point(f"walk_forward/{name}", number, float(values[rows].mean()), float(known[rows[-1]]))
    if y.ndim == 1 and set(np.unique(y)) <= {0.0, 1.0}:
        for rows in np.array_split(np.argsort(p, kind="stable"), min(BINS, len(p))):
            share, predicted = float(y[rows].mean()), round(PER_MILLE * float(p[rows].mean()))
            yield Point("calibration/observed_share", predicted, share, float(known[-1]))
