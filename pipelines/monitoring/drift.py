"""Has the market the service sees left the market the model was trained on?

Features are autocorrelated and the market changes regimes, so textbook p-values call everything drift. The yardstick is
therefore the training history itself: it is cut into blocks as long as the ones we watch, each is compared with the
whole, and a live block has to be stranger than the history's own blocks ever are, at a stated false-alarm budget.

    effect of a column   Wasserstein distance between block and reference over the reference's standard deviation
                         (the number Evidently 0.7.23 reports as `wasserstein`)
    score of a block     the largest effect over its usual size in that column: one test a block, not one a column
    threshold            quantile of a Gumbel law fitted to the history's scores (Gumbel 1958, Statistics of Extremes)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.errors import BadColumns, BadShape, NotEnoughData, UnreadableFile
from pipelines.settings import DriftParams

STD_FLOOR = 1e-3  # Evidently's own floor under the standard deviation; without it the two numbers would differ
LEAST_SCALE = 0.1  # a shift under a tenth of a standard deviation is no drift (Evidently's default threshold)
LEAST_BLOCKS = 20  # fewer block scores than this do not carry the fit of a tail
LEAST_SHARE = 0.5  # of a column's usual values in a block; with fewer its effect is not comparable with the history's
SAMPLE_ROWS = 5000  # of the history, kept as the reference: one reference for the alarm and for Evidently's report


@dataclass(frozen=True, slots=True)
class DriftReference:
    """What the training history says a block may look like. It travels with the training snapshot.

    columns     (k) names, in the order of the matrices; sample (m, k) rows of the history, NaN = missing
    scale       (k,) usual effect of a block in each column; NaN: wholly missing in the history, so not watched
    usual_rows  (k,) median number of values in a block
    scores      (B,) scores of the history's own blocks; location, spread: the Gumbel law fitted to them
    threshold   score from which a column is called drifted; alarm_rate: chance of that in one stationary block
    """

    columns: tuple[str, ...]
    sample: Floats
    scale: Floats
    usual_rows: Floats
    scores: Floats
    location: float
    spread: float
    threshold: float
    alarm_rate: float
    false_alarm_budget: float
    budget_blocks: int
    block_bars: int
    min_bars: int
    n: int

    @property
    def watched(self) -> tuple[str, ...]:
        return tuple(name for name, scale in zip(self.columns, self.scale, strict=True) if np.isfinite(scale))

    @property
    def thresholds(self) -> dict[str, float]:
        """Effect from which each watched column is called drifted: what Evidently's report is given."""
        limits = self.threshold * self.scale
        return {name: float(x) for name, x in zip(self.columns, limits, strict=True) if np.isfinite(x)}

    def save(self, folder: Path) -> None:
        """Write `drift.json` (figures) and `drift.npz` (arrays, no pickle) into an existing folder."""
        values = {name: value for name, value in asdict(self).items() if name not in _ARRAYS}
        np.savez_compressed(folder / "drift.npz", **{name: getattr(self, name) for name in _ARRAYS})
        (folder / "drift.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "DriftReference":
        """What `save` wrote. Raises UnreadableFile naming the file."""
        try:
            values = json.loads((folder / "drift.json").read_text())
            with np.load(folder / "drift.npz", allow_pickle=False) as arrays:
                return cls(**{**values, "columns": tuple(values["columns"])}, **{name: arrays[name] for name in _ARRAYS})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnreadableFile(f"{folder}: no readable drift reference ({error}). Train again to write one.") from error


_ARRAYS = ("sample", "scale", "usual_rows", "scores")


@dataclass(frozen=True, slots=True)
class BlockDrift:
    """One block of `block_bars` rows, `start` counted from the first row seen.

    effects   of every column judged, in the reference's standard deviations; rows: values behind each
    drifted   columns whose effect is at or over its threshold, strongest first; held: those that show it in both halves
    """

    start: int
    n: int
    score: float
    threshold: float
    effects: dict[str, float]
    rows: dict[str, int]
    drifted: tuple[str, ...]
    held: tuple[str, ...]
    unjudged: tuple[str, ...]

    @property
    def alarm(self) -> bool:
        return bool(self.held)


@dataclass(frozen=True, slots=True)
class DriftResult:
    """`alarm` if any block alarms; None if nothing could be judged, and `reason` says why. `n` rows were seen."""

    alarm: bool | None
    reason: str
    n: int
    blocks: tuple[BlockDrift, ...]


# ---- effects -----------------------------------------------------------------------------------------------------


@kernel
def _wasserstein(a, na, b, nb):  # type: ignore[no-untyped-def]
    """First Wasserstein distance of the sorted samples a[:na] and b[:nb]: the area between their two step functions."""
    area, i, j = 0.0, 0, 0
    x = min(a[0], b[0])
    while i < na or j < nb:
        following = b[j] if i == na or (j < nb and b[j] < a[i]) else a[i]
        area += abs(i / na - j / nb) * (following - x)
        x = following
        while i < na and a[i] == x:
            i += 1
        while j < nb and b[j] == x:
            j += 1
    return area


@kernel
def _block_effects(reference, counts, norms, values, starts, length, effects, rows):  # type: ignore[no-untyped-def]
    """Fill effects and rows (blocks, k) for blocks of `length` rows of `values` against the sorted reference (k, m)."""
    for c in range(values.shape[1]):
        for s in range(starts.shape[0]):
            block = np.sort(values[starts[s] : starts[s] + length, c])  # NaN last
            n = length - int(np.isnan(block).sum())
            rows[s, c] = n
            if n > 0 and counts[c] > 0:
                effects[s, c] = _wasserstein(reference[c], counts[c], block, n) / norms[c]


def block_effects(sample: Floats, values: Floats, starts: Ints, length: int) -> tuple[Floats, Floats]:
    """Normed Wasserstein distance of every block and column from the sample.

    sample   (m, k) reference rows; values (n, k) rows in time order; starts (b,) first row of each block; NaN = missing,
             left out column by column
    Returns  effects (b, k), NaN where either side has no value at all; number of values (b, k)
    """
    reference = np.ascontiguousarray(np.sort(sample, axis=0).T)  # NaN last
    present = np.isfinite(sample)
    norms = np.array([max(float(np.std(x[ok])), STD_FLOOR) if ok.any() else np.nan for x, ok in zip(sample.T, present.T, strict=True)])
    effects, rows = np.full((len(starts), values.shape[1]), np.nan), np.zeros((len(starts), values.shape[1]))
    _block_effects(reference, present.sum(axis=0), norms, np.ascontiguousarray(values), starts, length, effects, rows)
    return effects, rows
