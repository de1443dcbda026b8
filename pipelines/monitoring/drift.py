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
from zipfile import BadZipFile

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.errors import BadShape, BadValues, NotEnoughData, UnreadableFile
from pipelines.params import DriftParams

STD_FLOOR = 1e-3  # Evidently's own floor under the standard deviation; without it the two numbers would differ
LEAST_SCALE = 0.1  # a shift under a tenth of a standard deviation is no drift (Evidently's default threshold)
LEAST_BLOCKS = 20  # fewer block scores than this do not carry the fit of a tail
LEAST_SHARE = 0.5  # of a column's usual values in a block; with fewer its effect is not comparable with the history's
HOLDS = 1 / 3  # of the block's effect, that each half must show; measured: costs no detection on the simulator
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
    """One block of `block_bars` rows, `start` counted from the first row seen.

    effects   of every column judged, in the reference's standard deviations; rows: values behind each
    drifted   columns whose effect is at or over its threshold, strongest first; persistent: those it holds in, in both halves
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

    sample   (m, k) reference rows; values (n, k) rows in time order; NaN = missing, left out column by column
    starts   (b,) first row of each block of `length` rows
    Returns  effects (b, k), NaN where either side has no value at all; number of values (b, k)
    """
    reference = np.ascontiguousarray(np.sort(sample, axis=0).T)  # NaN last
    present = np.isfinite(sample)
    norms = np.array([max(x[np.isfinite(x)].std(), STD_FLOOR) if np.isfinite(x).any() else np.nan for x in sample.T])
    effects, rows = np.full((len(starts), values.shape[1]), np.nan), np.zeros((len(starts), values.shape[1]))
    _block_effects(reference, present.sum(axis=0), norms, np.ascontiguousarray(values), starts, length, effects, rows)
    return effects, rows


# ---- history, then live ------------------------------------------------------------------------------------------


def fit_reference(values: Floats, columns: tuple[str, ...], params: DriftParams, seed: int) -> DriftReference:
    """Measure what blocks of a stationary market look like.

    values   (n, k) training history in time order, one row a decision bar; NaN = missing or warming up
    params   block_bars, reference_blocks (0 = all, else the newest so many), false_alarm_budget in budget_blocks blocks
    seed     of the rows kept as the reference sample
    Raises   BadShape, BadValues (infinite), NotEnoughData under 20 whole blocks or without any value
    """
    _check(values, columns)
    length = params.block_bars
    blocks = len(values) // length
    if params.reference_blocks:
        blocks = min(blocks, params.reference_blocks)
    if blocks < LEAST_BLOCKS:
        raise NotEnoughData(
            f"{len(values)} rows of history give {blocks} blocks of {length}, wanted {LEAST_BLOCKS} for a threshold. "
            "Bring a longer history or lower drift.block_bars."
        )
    history = values[len(values) - blocks * length :]
    pick = np.random.default_rng(seed).choice(len(history), min(SAMPLE_ROWS, len(history)), replace=False)
    sample = np.ascontiguousarray(history[np.sort(pick)])
    effects, rows = block_effects(sample, history, np.arange(blocks) * length, length)
    effects /= 1.0 - 1.0 / blocks  # the whole holds the block: F - whole = (1 - 1/B) (F - the others), so is their area
    usual_rows = np.median(rows, axis=0)
    effects[rows < LEAST_SHARE * usual_rows] = np.nan
    watched = np.isfinite(effects).any(axis=0)
    if not watched.any():
        raise NotEnoughData(f"none of {len(columns)} columns has values in the history. Check the feature columns.")
    scale = np.full(len(columns), np.nan)
    scale[watched] = np.maximum(np.nanmean(effects[:, watched], axis=0), LEAST_SCALE)
    scores = np.nanmax(effects[:, watched] / scale[watched], axis=1)
    from scipy import stats  # a second of imports that only this needs

    location, spread = (float(x) for x in stats.gumbel_r.fit(scores))
    alarm_rate = 1.0 - (1.0 - params.false_alarm_budget) ** (1.0 / params.budget_blocks)
    return DriftReference(
        columns=tuple(columns), sample=sample, scale=scale, usual_rows=usual_rows, scores=scores,
        location=location, spread=spread, threshold=float(stats.gumbel_r.isf(alarm_rate, location, spread)),
        alarm_rate=alarm_rate, false_alarm_budget=params.false_alarm_budget, budget_blocks=params.budget_blocks,
        block_bars=length, min_bars=params.min_bars, n=len(history),
    )  # fmt: skip


def detect(reference: DriftReference, values: Floats) -> DriftResult:
    """Judge what the service saw, block by block from the first row on; rows after the last whole block wait.

    values   (n, k) feature rows in time order, columns as in the reference; NaN = missing
    A block alarms when a column's effect reaches its threshold and each half of the block shows at least a third of
    that effect: a burst of an hour is no drift. The budget speaks of `budget_blocks` blocks; a longer watch spends it
    again.
    Raises   BadShape, BadValues
    """
    _check(values, reference.columns)
    length, n = reference.block_bars, len(values)
    if n < max(length, reference.min_bars):
        return DriftResult(None, f"{n} rows seen, {max(length, reference.min_bars)} needed for the first block", n, ())
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
    limits = reference.threshold * reference.scale
    judged = np.flatnonzero(np.isfinite(effects) & np.isfinite(limits))
    shifts = effects / reference.scale
    over = [c for c in sorted(judged, key=lambda c: -shifts[c]) if effects[c] >= limits[c]]
    held = [c for c in over if least_half[c] >= HOLDS * effects[c]]
    names = reference.columns
    return BlockDrift(
        start=start,
        n=reference.block_bars,
        score=float(shifts[judged].max()) if len(judged) else float("nan"),
        threshold=reference.threshold,
        effects={names[c]: float(effects[c]) for c in judged},
        rows={names[c]: int(rows[c]) for c in judged},
        drifted=tuple(names[c] for c in over),
        persistent=tuple(names[c] for c in held),
        unjudged=tuple(name for name in reference.watched if name not in {names[c] for c in judged}),
        alarm=bool(held),
    )


def _reason(reference: DriftReference, blocks: tuple[BlockDrift, ...], n: int) -> str:
    """What an operator reads: the block that decided, its numbers, and what was left out."""
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
        text += f"; over their threshold and holding: {', '.join(block.persistent)}"
    missing = sorted({name for each in blocks for name in each.unjudged})
    if missing:
        text += f"; too few values to judge: {', '.join(missing)}"
    if n % reference.block_bars:
        text += f"; {n % reference.block_bars} rows wait for their block"
    return text


def _check(values: Floats, columns: tuple[str, ...]) -> None:
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise BadShape(f"rows have shape {values.shape}, wanted (n, {len(columns)}) for the columns given")
    infinite = np.isinf(values).any(axis=0)
    if infinite.any():
        names = ", ".join(columns[c] for c in np.flatnonzero(infinite))
        raise BadValues(f"infinite values in {names}. Missing is NaN; mend the feature or drop it.")
