"""Read a snapshot's stage outputs as the training rows of a family: the rows of all its markets, in time order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.contracts import Arrays, Floats, History, Ints
from pipelines.errors import NotEnoughData
from pipelines.models.base import Dataset
from pipelines.models.views import View
from pipelines.stage_outputs import features_of, labels_of, read_meta, symbols_in

_SHARED = ("index", "y", "uniqueness", "known", "ended")


@dataclass(frozen=True, slots=True)
class PooledLabels:
    """Hold the rows of one labels file of every market, sorted by the time they were known, ties by market.

    symbols  names of the markets
    symbol   (m,) code of each row's market; row: (m,) its number in that market's file
    arrays   what the files hold of each row: name → (m,) or (m, j), and `columns` where they name some
    """

    symbols: tuple[str, ...]
    symbol: Ints
    row: Ints
    arrays: Arrays

    def __len__(self) -> int:
        """Return the number of rows, m."""
        return len(self.row)

    def of(self, symbol: str) -> Ints:
        """Return the numbers of the rows of one market."""
        return np.flatnonzero(self.symbol == self.symbols.index(symbol))


def pooled_labels(artifacts: Path, name: str) -> PooledLabels:
    """Return the rows of `labels/<slug>/<name>.npz` of all markets of the snapshot."""
    symbols, found = symbols_in(read_meta(artifacts)), []
    for symbol in symbols:
        with np.load(labels_of(artifacts, symbol) / f"{name}.npz", allow_pickle=False) as f:
            found.append({each: f[each] for each in f.files})
    counts = [len(arrays["known"]) for arrays in found]
    code = np.repeat(np.arange(len(symbols)), counts)
    row = np.concatenate([np.arange(count) for count in counts])
    if len(symbols) == 1:  # its file is in time order
        return PooledLabels(symbols, code, row, found[0])
    order = np.lexsort((code, np.concatenate([arrays["known"] for arrays in found])))
    pooled = {
        each: found[0][each] if each == "columns" else np.concatenate([arrays[each] for arrays in found])[order]
        for each in found[0]
    }
    return PooledLabels(symbols, code[order], row[order], pooled)


def read_history(artifacts: Path, symbol: str | None = None) -> History:
    """Return a market's decision bars and everything known at their closes; memory-mapped, read only.

    symbol  None = the first market of the snapshot
    """
    names = {"bars": "decision", "features": "features", "signals": "signals", "levels": "books", "context": "context"}
    folder = features_of(artifacts, symbols_in(read_meta(artifacts))[0] if symbol is None else symbol)
    return History(**{key: np.load(folder / f"{name}.npy", mmap_mode="r") for key, name in names.items()})


def bar_rows(artifacts: Path, labels: str, view: View) -> Dataset:
    """Return one row per labelled decision bar of every market; inputs are (n, steps, k), of a view of one step (n, k).

    labels  name of a file of the labels stage: `index` (position of the decision bar), y, uniqueness, known, ended,
            and the extras of this family
    view    how the inputs are read, each row from its own market's history
    Raises  NotEnoughData if no bar is labelled
    """
    rows = pooled_labels(artifacts, labels)
    if not len(rows):
        raise NotEnoughData(f"no bar of this snapshot has a {labels} label; bring a longer history")
    histories = [read_history(artifacts, symbol) for symbol in rows.symbols]
    inputs = _windows_of(histories, rows.symbol, rows.arrays["index"], view)
    return Dataset(
        columns=view.columns,
        inputs=inputs,
        newest_of=_newest_of(inputs, len(rows)) if view.steps > 1 else None,
        at=np.arange(len(rows)),
        weight=rows.arrays["uniqueness"],
        extras={name: values for name, values in rows.arrays.items() if name not in _SHARED},
        symbol=rows.symbol,
        symbols=rows.symbols,
        **{name: rows.arrays[name] for name in _SHARED if name != "index"},
    )


def _newest_of(inputs: Callable[[Ints], Floats], n: int) -> Callable[[Ints], Floats]:
    """Return the function from row numbers to their newest bars, which reads the n windows once, at its first use."""
    kept: list[Floats] = []

    def newest(rows: Ints) -> Floats:
        """Return the newest bars (len(rows), k)."""
        if not kept:
            parts = np.array_split(np.arange(n), max(1, n // 2048))
            kept.append(np.concatenate([inputs(part)[:, -1] for part in parts]))
        return np.asarray(kept[0][rows])

    return newest


def _windows_of(histories: Sequence[History], symbol: Ints, index: Ints, view: View) -> Callable[[Ints], Floats]:
    """Return the function from row numbers (n,) to windows (n, steps, k), or (n, k) of a view of one step."""

    def of_market(code: int, at: Ints) -> Floats:
        """Return the windows of bars `at` of one market."""
        windows = view.build(histories[code], at)
        return windows if view.steps > 1 else windows[:, 0]

    def inputs(rows: Ints) -> Floats:
        """Return the windows of the rows; those of several markets are written into one array."""
        codes = np.unique(symbol[rows])
        if len(codes) < 2:
            return of_market(int(codes[0]) if len(codes) else 0, index[rows])
        shape = (view.steps, len(view.columns)) if view.steps > 1 else (len(view.columns),)
        out = np.empty((len(rows), *shape))
        for code in codes:
            at = np.flatnonzero(symbol[rows] == code)
            out[at] = of_market(int(code), index[rows[at]])
        return out

    return inputs
