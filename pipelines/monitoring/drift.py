"""Detect drift: does the live market differ from the market the model was trained on?

Features are autocorrelated and the market changes regimes, so textbook p-values call everything drift. The yardstick is
therefore the training history itself: it is cut into blocks as long as the live ones, each is compared with the whole,
and a live block alarms if it deviates more than the history's own blocks do, at a stated false-alarm budget.

    effect of a column   Wasserstein distance between block and reference over the reference's standard deviation
                         (the number Evidently 0.7.23 reports as `wasserstein`)
    score of a block     the largest effect over its usual size in that column: one test a block, not one a column
    threshold            quantile of a Gumbel law fitted to the history's scores (Gumbel 1958, Statistics of Extremes)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.errors import BadShape, BadValues, NotEnoughData, UnreadableFile
from pipelines.params import DriftParams

STD_FLOOR = 1e-3  # Evidently's own floor under the standard deviation; without it the two numbers would differ
LEAST_SCALE = 0.1  # a shift under a tenth of a standard deviation is no drift (Evidently's default threshold)
LEAST_BLOCKS = 20  # fewer block scores are too few to fit a tail
LEAST_SHARE = 0.5  # of a column's usual values in a block; with fewer, its effect is not comparable with the history's
PERSISTS = 1 / 3  # share of a block's effect that each half must show; it costs no detection on the simulator
SAMPLE_ROWS = 5000  # of the history, stored as the reference of the alarm and of Evidently's report


@dataclass(frozen=True, slots=True)
class DriftReference:
    """Hold how blocks of the training history deviate from the whole. It is stored with the training snapshot.

    columns     (k) names, in the order of the matrices; sample (m, k) rows of the history, NaN = missing
    scale       (k,) usual effect of a block in each column; NaN: always missing in the history, so not watched
    usual_rows  (k,) median number of values in a block
    scores      (B,) scores of the history's own blocks; location, spread: the Gumbel law fitted to them
    threshold   score from which a column is drifted; alarm_rate: probability of that in one stationary block
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
        """Return the columns with values in the history."""
        return tuple(name for name, scale in zip(self.columns, self.scale, strict=True) if np.isfinite(scale))

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the effect from which each watched column is drifted, also used by Evidently's report."""
        limits = self.threshold * self.scale
        return {name: float(x) for name, x in zip(self.columns, limits, strict=True) if np.isfinite(x)}

    def save(self, folder: Path) -> None:
        """Write `drift.json` (figures) and `drift.npz` (arrays, no pickle) into an existing folder."""
        values = {name: value for name, value in asdict(self).items() if name not in _ARRAYS}
        np.savez_compressed(folder / "drift.npz", **{name: getattr(self, name) for name in _ARRAYS})
        (folder / "drift.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "DriftReference":
        """Return the reference that `save` wrote. Raises UnreadableFile naming the folder."""
        try:
            values = json.loads((folder / "drift.json").read_text())
            # opened here: numpy does not close a file that turns out to be cut short
            with (folder / "drift.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(
                    **{**values, "columns": tuple(values["columns"])}, **{name: arrays[name] for name in _ARRAYS}
                )
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            raise UnreadableFile(
                f"{folder}: no readable drift reference ({error}). Train again to write one."
            ) from error


_ARRAYS = ("sample", "scale", "usual_rows", "scores")


@dataclass(frozen=True, slots=True)
class BlockDrift:
    """Hold the drift of one block of `block_bars` rows from row `start` on.

    effects   of every judged column, in the reference's standard deviations; rows: number of values of each
    drifted   columns whose effect reaches its threshold, strongest first; persistent: those with it in both halves
    unjudged  watched columns with too few values here
    """

    start: int
    n: int
    score: float
    threshold: float
    effects: dict[str, float]
    rows: dict[str, int]
    drifted: tuple[str, ...]
    persistent: tuple[str, ...]
    unjudged: tuple[str, ...]
    alarm: bool


@dataclass(frozen=True, slots=True)
class DriftResult:
    """Hold the drift of n live rows: `alarm` if any block alarms, None with a `reason` if none could be judged."""

    alarm: bool | None
    reason: str
    n: int
    blocks: tuple[BlockDrift, ...]


# ---- effects -----------------------------------------------------------------------------------------------------


@kernel
def _wasserstein(a: Floats, na: int, b: Floats, nb: int) -> float:
    """Return the first Wasserstein distance of sorted a[:na] and b[:nb] (float64; na, nb int64)."""
    area: float = 0.0
    i, j = 0, 0
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
def _block_effects(
    reference: Floats, counts: Ints, norms: Floats, values: Floats, starts: Ints, length: int, effects: Floats,
    rows: Floats,
) -> None:  # fmt: skip
    """Fill effects and rows (blocks, k) for blocks of `length` rows of `values` against the sorted reference (k, m).

    float64; counts (k,) and starts (blocks,) int64.
    """
    for c in range(values.shape[1]):
        for s in range(starts.shape[0]):
            block = np.sort(values[starts[s] : starts[s] + length, c])  # NaN last
            n = length - int(np.isnan(block).sum())
            rows[s, c] = n
            if n > 0 and counts[c] > 0:
                effects[s, c] = _wasserstein(reference[c], counts[c], block, n) / norms[c]


def block_effects(sample: Floats, values: Floats, starts: Ints, length: int) -> tuple[Floats, Floats]:
    """Return the normed Wasserstein distance of every block and column from the sample.

    sample   (m, k) reference rows; values (n, k) rows in time order; NaN = missing, left out column by column
    starts   (b,) first row of each block of `length` rows
    Returns  effects (b, k), NaN where either side has no value; number of values (b, k)
    """
    reference = np.ascontiguousarray(np.sort(sample, axis=0).T)  # NaN last
    present = np.isfinite(sample)
    norms = np.array([max(x[np.isfinite(x)].std(), STD_FLOOR) if np.isfinite(x).any() else np.nan for x in sample.T])
    effects, rows = np.full((len(starts), values.shape[1]), np.nan), np.zeros((len(starts), values.shape[1]))
    _block_effects(reference, present.sum(axis=0), norms, np.ascontiguousarray(values), starts, length, effects, rows)
    return effects, rows


# ---- history, then live ------------------------------------------------------------------------------------------


def fit_reference(values: Floats, columns: tuple[str, ...], params: DriftParams, seed: int) -> DriftReference:
    """Measure how blocks of the history deviate from the whole and fit the alarm threshold.

    values   (n, k) training history in time order, one row a decision bar; NaN = missing or warming up
    params   block_bars, reference_blocks (0 = all, else the newest so many), false_alarm_budget in budget_blocks blocks
    seed     of the choice of rows in the reference sample
    Raises   BadShape, BadValues (infinite), NotEnoughData under 20 whole blocks or without any value
    """
    _check(values, columns)
    length = params.block_bars
    blocks = len(values) // length
    if params.reference_blocks:
        blocks = min(blocks, params.reference_blocks)
    if blocks < LEAST_BLOCKS:
        raise NotEnoughData(
            f"{len(values)} rows of history give {blocks} blocks of {length}, needs {LEAST_BLOCKS} for a threshold. "
            "Bring a longer history or lower drift.block_bars."
        )
    history = values[len(values) - blocks * length :]
    pick = np.random.default_rng(seed).choice(len(history), min(SAMPLE_ROWS, len(history)), replace=False)
    sample = np.ascontiguousarray(history[np.sort(pick)])
    effects, rows = block_effects(sample, history, np.arange(blocks) * length, length)
    effects /= (
        1.0 - 1.0 / blocks
    )  # the whole contains the block: F - whole = (1 - 1/B) (F - the others), and so do the areas
    usual_rows = np.median(rows, axis=0)
    effects[rows < LEAST_SHARE * usual_rows] = np.nan
    watched = np.isfinite(effects).any(axis=0)
    if not watched.any():
        raise NotEnoughData(f"none of {len(columns)} columns has values in the history. Check the feature columns.")
    scale = np.full(len(columns), np.nan)
    scale[watched] = np.maximum(np.nanmean(effects[:, watched], axis=0), LEAST_SCALE)
    scores = np.nanmax(effects[:, watched] / scale[watched], axis=1)
    from scipy import stats  # takes a second to import, and only this function needs it

    location, spread = (float(x) for x in stats.gumbel_r.fit(scores))
    alarm_rate = 1.0 - (1.0 - params.false_alarm_budget) ** (1.0 / params.budget_blocks)
    return DriftReference(
        columns=tuple(columns), sample=sample, scale=scale, usual_rows=usual_rows, scores=scores,
        location=location, spread=spread, threshold=float(stats.gumbel_r.isf(alarm_rate, location, spread)),
        alarm_rate=alarm_rate, false_alarm_budget=params.false_alarm_budget, budget_blocks=params.budget_blocks,
        block_bars=length, min_bars=params.min_bars, n=len(history),
    )  # fmt: skip


def detect(reference: DriftReference, values: Floats) -> DriftResult:
    """Judge live rows block by block from the first row on; rows after the last complete block wait.

    values   (n, k) feature rows in time order, columns as in the reference; NaN = missing
    A block alarms if a column's effect reaches its threshold and each half of the block shows at least a third of that
    effect: a burst of an hour is no drift. The false-alarm budget covers `budget_blocks` blocks; every further
    `budget_blocks` blocks spend it again.
    Raises   BadShape, BadValues
    """
    _check(values, reference.columns)
    length, n = reference.block_bars, len(values)
    if n < max(length, reference.min_bars):
        return DriftResult(None, f"{n} rows, {max(length, reference.min_bars)} needed for the first block", n, ())
    starts = np.arange(n // length) * length
    half = length // 2
    effects, rows = block_effects(reference.sample, values, starts, length)
    first, _ = block_effects(reference.sample, values, starts, half)
    second, _ = block_effects(reference.sample, values, starts + half, length - half)
    effects[rows < LEAST_SHARE * reference.usual_rows] = np.nan
    blocks = tuple(
        _judge(reference, int(start), effects[i], np.fmin(first[i], second[i]), rows[i])
        for i, start in enumerate(starts)
    )
    if all(not block.effects for block in blocks):
        return DriftResult(None, f"no watched column has enough values in {n} rows; fill the missing inputs", n, blocks)
    return DriftResult(any(block.alarm for block in blocks), _reason(reference, blocks, n), n, blocks)


def _judge(reference: DriftReference, start: int, effects: Floats, least_half: Floats, rows: Floats) -> BlockDrift:
    """Return the drift of one block from its effects (k,) and the smaller effect of its halves."""
    limits = reference.threshold * reference.scale
    judged = np.flatnonzero(np.isfinite(effects) & np.isfinite(limits))
    shifts = effects / reference.scale
    over = [c for c in sorted(judged, key=lambda c: -shifts[c]) if effects[c] >= limits[c]]
    persistent = [c for c in over if least_half[c] >= PERSISTS * effects[c]]
    names = reference.columns
    return BlockDrift(
        start=start,
        n=reference.block_bars,
        score=float(shifts[judged].max()) if len(judged) else float("nan"),
        threshold=reference.threshold,
        effects={names[c]: float(effects[c]) for c in judged},
        rows={names[c]: int(rows[c]) for c in judged},
        drifted=tuple(names[c] for c in over),
        persistent=tuple(names[c] for c in persistent),
        unjudged=tuple(name for name in reference.watched if name not in {names[c] for c in judged}),
        alarm=bool(persistent),
    )


def _reason(reference: DriftReference, blocks: tuple[BlockDrift, ...], n: int) -> str:
    """Return the text for operators: the deciding block, its numbers, and what was left out."""
    alarms = [block for block in blocks if block.alarm]
    judged = [block for block in blocks if block.effects]
    block = alarms[0] if alarms else max(judged, key=lambda b: b.score)
    strongest = (
        block.persistent[0] if alarms else max(block.effects, key=lambda c: block.effects[c] / reference.thresholds[c])
    )
    text = (
        f"{'drift' if alarms else 'no drift'}: {len(alarms)} of {len(blocks)} blocks of {block.n} rows alarm; "
        f"rows {block.start}-{block.start + block.n - 1} score {block.score:.2f}, threshold {block.threshold:.2f}; "
        f"{strongest} moved {block.effects[strongest]:.2f} sd on {block.rows[strongest]} rows"
    )
    if alarms:
        text += f"; over their threshold in both halves: {', '.join(block.persistent)}"
    missing = sorted({name for each in blocks for name in each.unjudged})
    if missing:
        text += f"; too few values to judge: {', '.join(missing)}"
    if n % reference.block_bars:
        text += f"; {n % reference.block_bars} rows wait for their block"
    return text


def _check(values: Floats, columns: tuple[str, ...]) -> None:
    """Raise BadShape unless values are (n, columns), BadValues on an infinite value."""
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise BadShape(f"rows have shape {values.shape}, expected (n, {len(columns)}) for the columns given")
    infinite = np.isinf(values).any(axis=0)
    if infinite.any():
        names = ", ".join(columns[c] for c in np.flatnonzero(infinite))
        raise BadValues(f"infinite values in {names}. Use NaN for missing values; fix the feature or drop it.")
