"""A snapshot's stage outputs as the rows a family learns from."""

from pathlib import Path

import numpy as np

from pipelines.contracts import Floats, History, Ints
from pipelines.errors import NotEnoughData
from pipelines.models.base import Dataset
from pipelines.models.views import View

_SHARED = ("index", "y", "weight", "uniqueness", "known", "ended")


def read_history(artifacts: Path) -> History:
    """Decision bars of the snapshot and everything known at their closes; memory-mapped, read only."""
    names = {"bars": "decision", "features": "features", "signals": "signals", "levels": "books", "context": "context"}
    arrays = {k: np.load(artifacts / "features" / f"{name}.npy", mmap_mode="r") for k, name in names.items()}
    return History(**arrays)


def bar_rows(artifacts: Path, labels: str, view: View) -> Dataset:
    """One row a labelled decision bar, read through `view`; inputs are (n, steps, k), of a view of one step (n, k).

    labels  name of a file of the labels stage: `index` (position of the decision bar), y, weight, uniqueness, known,
            ended, and whatever else this family needs
    Raises  NotEnoughData where nothing could be labelled
    """
    history = read_history(artifacts)
    with np.load(artifacts / "labels" / f"{labels}.npz", allow_pickle=False) as f:
        told = {name: f[name] for name in f.files}
    index: Ints = told["index"]
    if len(index) == 0:
        raise NotEnoughData(f"no bar of this snapshot has a {labels} label; bring a longer history")

    def inputs(rows: Ints) -> Floats:
        windows = view.build(history, index[rows])
        return windows if view.steps > 1 else windows[:, 0]

    return Dataset(
        columns=view.columns,
        inputs=inputs,
        at=np.arange(len(index)),
        extras={name: values for name, values in told.items() if name not in _SHARED},
        **{name: told[name] for name in _SHARED if name != "index"},
    )
