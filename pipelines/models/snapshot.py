"""Read a snapshot's stage outputs as the training rows of a family."""

from pathlib import Path

import numpy as np

from pipelines.contracts import Floats, History, Ints
from pipelines.errors import NotEnoughData
from pipelines.models.base import Dataset
from pipelines.models.views import View

_SHARED = ("index", "y", "uniqueness", "known", "ended")


def read_history(artifacts: Path) -> History:
    """Return the decision bars of a snapshot and everything known at their closes; memory-mapped, read only."""
    names = {"bars": "decision", "features": "features", "signals": "signals", "levels": "books", "context": "context"}
    arrays = {k: np.load(artifacts / "features" / f"{name}.npy", mmap_mode="r") for k, name in names.items()}
    return History(**arrays)


def bar_rows(artifacts: Path, labels: str, view: View) -> Dataset:
    """Return one row per labelled decision bar; inputs are (n, steps, k), of a view of one step (n, k).

    labels  name of a file of the labels stage: `index` (position of the decision bar), y, uniqueness, known, ended,
            and the extras of this family
    view    how the inputs are read
    Raises  NotEnoughData if no bar is labelled
    """
    history = read_history(artifacts)
    with np.load(artifacts / "labels" / f"{labels}.npz", allow_pickle=False) as f:
        arrays = {name: f[name] for name in f.files}
    index: Ints = arrays["index"]
    if len(index) == 0:
        raise NotEnoughData(f"no bar of this snapshot has a {labels} label; bring a longer history")

    def inputs(rows: Ints) -> Floats:
        """Return the windows of the rows, (n, steps, k) or (n, k)."""
        windows = view.build(history, index[rows])
        return windows if view.steps > 1 else windows[:, 0]

    return Dataset(
        columns=view.columns,
        inputs=inputs,
        at=np.arange(len(index)),
        weight=arrays["uniqueness"],
        extras={name: values for name, values in arrays.items() if name not in _SHARED},
        **{name: arrays[name] for name in _SHARED if name != "index"},
    )
