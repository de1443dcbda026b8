"""What a champion remembers of its training inputs, so that a watch can say whether live inputs differ from them.

Features are autocorrelated and the market changes regimes, so textbook p-values call everything drift. The yardstick is
therefore the training history itself: it is cut into blocks as long as the live ones, each is compared with the whole,
and a live block alarms if it deviates more than the history's own blocks do. The reference lies in the model's bundle:
neither a newer snapshot nor a refused retrain can absorb a drift.

    effect of a column   Wasserstein distance between block and reference over the reference's standard deviation
                         (the number Evidently 0.7.23 reports as `wasserstein`)
    missing              change of the share of missing values of a column, judged in the same way
    score of a block     the largest effect over its usual size in that column: one test a block, not one a column
    level                quantile of a Gumbel law fitted to the history's scores (Gumbel 1958, Statistics of Extremes)
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import log, pi, sqrt
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Bools, Floats, Ints
from pipelines.data.symbols import slug_of
from pipelines.errors import BadShape, BadValues, NotEnoughData, UnreadableFile
from pipelines.models.trained_on import symbols_of
from pipelines.params import DriftParams

STD_FLOOR = 1e-3  # Evidently's own floor under the standard deviation; without it the two numbers would differ
LEAST_SCALE = 0.1  # a shift under a tenth of a standard deviation is no drift (Evidently's default threshold)
LEAST_MISSING = 0.03  # usual change of the share missing, at least: with a history without gaps, 14 to 18 % alarm
LEAST_BLOCKS = 20  # fewer block scores are too few to fit a tail
LEAST_SHARE = 0.5  # of a column's usual values in a block; with fewer, its effect is not comparable with the history's
SAMPLE_ROWS = 2000  # of the history: a distance of 0.02 standard deviations is its own error, a fifth of LEAST_SCALE
EULER = 0.5772156649015329
JSON_FILE, ARRAYS_FILE = "drift.json", "drift.npz"


@dataclass(frozen=True, slots=True)
class GumbelTail:
    """Hold the scores of the history's own blocks and the law fitted to them."""

    scores: Floats
    location: float
    spread: float

    def level(self, rate: float) -> float:
        """Return the score that a stationary block exceeds with probability `rate`."""
        return self.location - self.spread * log(-log(1.0 - rate))


@dataclass(frozen=True, slots=True)
class DriftReference:
    """Hold how blocks of the training history deviate from the whole. It is stored in the model's bundle.

    columns        (k) names, in the order of the matrices; sample (m, k) rows of the history, NaN = missing
    scale          (k,) usual effect of a block in each column; NaN: always missing in the history, so not watched
    usual_rows     (k,) median number of values in a block
    missing_share  (k,) share of missing values from the column's first value on; NaN where there is none
    missing_scale  (k,) usual change of that share in a block
    values, missing  scores of the history's own blocks
    block_bars     rows of a block; n: rows of the history
    """

    columns: tuple[str, ...]
    sample: Floats
    scale: Floats
    usual_rows: Floats
    missing_share: Floats
    missing_scale: Floats
    values: GumbelTail
    missing: GumbelTail
    block_bars: int
    n: int

    @property
    def watched(self) -> tuple[str, ...]:
        """Return the columns with values in the history."""
        return tuple(name for name, scale in zip(self.columns, self.scale, strict=True) if np.isfinite(scale))

    def thresholds(self, rate: float) -> dict[str, float]:
        """Return the effect from which each watched column is drifted at this alarm rate of a block."""
        limits = self.values.level(rate) * self.scale
        return {name: float(x) for name, x in zip(self.columns, limits, strict=True) if np.isfinite(x)}

    def missing_limits(self, rate: float) -> dict[str, tuple[float, float]]:
        """Return (lowest, highest) share missing that is no alarm, of each watched column, at this rate of a block."""
        reach = self.missing.level(rate) * self.missing_scale
        return {
            name: (max(0.0, float(share - r)), min(1.0, float(share + r)))
            for name, share, r in zip(self.columns, self.missing_share, reach, strict=True)
            if np.isfinite(r)
        }

    def files(self) -> dict[str, bytes]:
        """Return the bytes of `drift.json` (figures) and `drift.npz` (arrays, no pickle); the same in, the same out."""
        figures = {
            "columns": list(self.columns), "block_bars": self.block_bars, "n": self.n,
            "values": {"location": self.values.location, "spread": self.values.spread},
            "missing": {"location": self.missing.location, "spread": self.missing.spread},
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, sample=self.sample.astype(np.float32), scale=self.scale, usual_rows=self.usual_rows,
            missing_share=self.missing_share, missing_scale=self.missing_scale,
            values_scores=self.values.scores, missing_scores=self.missing.scores,
        )  # fmt: skip
        return {
            JSON_FILE: (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode(),
            ARRAYS_FILE: buffer.getvalue(),
        }


def of_market(files: Mapping[str, bytes], symbol: str) -> dict[str, bytes]:
    """Return the files of a reference under the names they have in a bundle of several markets."""
    return {_named(name, symbol): content for name, content in files.items()}


def _named(name: str, symbol: str) -> str:
    """Return the name of a market's file: drift.json is drift.BTC-USDT.json."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{slug_of(symbol)}.{suffix}"


def has_reference(bundle: Path) -> bool:
    """Return whether a bundle stores drift references, of one market or of several."""
    stem, _, suffix = JSON_FILE.rpartition(".")
    return (bundle / JSON_FILE).is_file() or any(bundle.glob(f"{stem}.*.{suffix}"))


def read_reference(folder: Path, symbol: str | None = None) -> DriftReference:
    """Return the reference of one market that a bundle or folder stores, as `DriftReference.files` gave it.

    symbol  None = the only one of the folder. A bundle of a release before 0.11 has one, of the symbol of its schema
    Raises  NotEnoughData with training's own reason where the history was too short for one, or where the model was
            not trained on the market; UnreadableFile naming the folder
    """
    json_file, arrays_file = JSON_FILE, ARRAYS_FILE
    if symbol is not None and (folder / _named(JSON_FILE, symbol)).is_file():
        json_file, arrays_file = _named(JSON_FILE, symbol), _named(ARRAYS_FILE, symbol)
    elif symbol is not None and (folder / "schema.json").is_file():
        trained_on = symbols_of(json.loads((folder / "schema.json").read_text()))
        if symbol not in trained_on:
            raise NotEnoughData(f"the model was trained on {', '.join(trained_on)}, not on {symbol}")
    try:
        figures = json.loads((folder / json_file).read_text())
        if reason := figures.get("insufficient"):
            raise NotEnoughData(str(reason))
        # opened here: numpy does not close a file that turns out to be cut short
        with (folder / arrays_file).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tails = {
                name: GumbelTail(arrays[f"{name}_scores"], figures[name]["location"], figures[name]["spread"])
                for name in ("values", "missing")
            }
            return DriftReference(
                columns=tuple(figures["columns"]), sample=arrays["sample"].astype(np.float64), scale=arrays["scale"],
                usual_rows=arrays["usual_rows"], missing_share=arrays["missing_share"],
                missing_scale=arrays["missing_scale"], **tails, block_bars=figures["block_bars"], n=figures["n"],
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UnreadableFile(f"{folder}: no readable drift reference ({error}). Train again to write one.") from error


def reference_files(values: Floats, columns: tuple[str, ...], params: DriftParams, seed: int) -> dict[str, bytes]:
    """Return the files of the reference of a training history; with too short a one, a file that says so.

    Arguments and errors as of `fit_reference`, but for NotEnoughData.
    """
    try:
        return fit_reference(values, columns, params, seed).files()
    except NotEnoughData as error:
        return without_reference(str(error))


def without_reference(reason: str) -> dict[str, bytes]:
    """Return the file that stands for a reference that there is none of: `read_reference` raises the reason."""
    return {JSON_FILE: (json.dumps({"insufficient": reason}, indent=1) + "\n").encode()}


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


def missing_shares(values: Floats, starts: Ints, length: int, counted: Bools | None = None) -> Floats:
    """Return (b, k) share of missing values in each block of `length` rows; NaN where under half of it is counted.

    values   (n, k) rows in time order, NaN = missing; starts (b,) first row of each block
    counted  (n, k) rows that count; None: all
    """
    shares = np.full((len(starts), values.shape[1]), np.nan)
    for b, start in enumerate(starts):
        block = slice(start, start + length)
        present = np.isfinite(values[block])
        rows = np.full(values.shape[1], float(length)) if counted is None else counted[block].sum(axis=0).astype(float)
        enough = rows >= LEAST_SHARE * length
        shares[b, enough] = 1.0 - present[:, enough].sum(axis=0) / rows[enough]
    return shares


# ---- history ---------------------------------------------------------------------------------------------------------


def fit_reference(values: Floats, columns: tuple[str, ...], params: DriftParams, seed: int) -> DriftReference:
    """Measure how blocks of the history deviate from the whole, in values and in the share missing.

    values   (n, k) training history in time order, one row a decision bar; NaN = missing or warming up. Rows before a
             column's first value are not counted as missing
    params   block_bars, reference_blocks (0 = all, else the newest so many)
    seed     of the choice of rows in the reference sample
    Raises   BadShape, BadValues (infinite), NotEnoughData under 20 whole blocks or without any value
    """
    check_rows(values, columns)
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
    starts = np.arange(blocks) * length
    pick = np.random.default_rng(seed).choice(len(history), min(SAMPLE_ROWS, len(history)), replace=False)
    # rounded as it is stored, so that live blocks are compared with the very numbers the history's blocks were
    sample = np.ascontiguousarray(history[np.sort(pick)].astype(np.float32).astype(np.float64))
    effects, rows = block_effects(sample, history, starts, length)
    others = 1.0 - 1.0 / blocks  # the whole contains the block: F - whole = (1 - 1/B) (F - the others), and so do areas
    effects /= others
    usual_rows = np.median(rows, axis=0)
    effects[rows < LEAST_SHARE * usual_rows] = np.nan
    watched: Bools = np.asarray(np.isfinite(effects).any(axis=0))
    if not watched.any():
        raise NotEnoughData(f"none of {len(columns)} columns has values in the history. Check the feature columns.")
    scale = np.full(len(columns), np.nan)
    scale[watched] = np.maximum(np.nanmean(effects[:, watched], axis=0), LEAST_SCALE)
    share, missing_scale, missing = _missing_history(history, starts, length, watched, others)
    return DriftReference(
        columns=tuple(columns), sample=sample, scale=scale, usual_rows=usual_rows, missing_share=share,
        missing_scale=missing_scale, values=_fitted(np.nanmax(effects[:, watched] / scale[watched], axis=1)),
        missing=missing, block_bars=length, n=len(history),
    )  # fmt: skip


def _missing_history(
    history: Floats, starts: Ints, length: int, watched: Bools, others: float
) -> tuple[Floats, Floats, GumbelTail]:
    """Return (share (k,), scale (k,), tail) of the share missing; NaN for a column that is not watched."""
    counted = np.maximum.accumulate(np.isfinite(history), axis=0)
    share, scale = np.full(len(watched), np.nan), np.full(len(watched), np.nan)
    share[watched] = 1.0 - np.isfinite(history[:, watched]).sum(axis=0) / counted[:, watched].sum(axis=0)
    moved = np.abs(missing_shares(history, starts, length, counted) - share) / others
    known = watched & np.isfinite(moved).any(axis=0)
    scale[known] = np.maximum(np.nanmean(moved[:, known], axis=0), LEAST_MISSING)
    judged = np.isfinite(moved[:, known]).any(axis=1)
    scores = np.nanmax(moved[np.ix_(judged, known)] / scale[known], axis=1)
    # by moments, with a floor: a history without gaps has scores of zero and no tail of its own
    spread = max(float(scores.std()) * sqrt(6.0) / pi, 1.0)
    location = float(scores.mean()) - (EULER * spread if spread > 1.0 else 0.0)
    return share, scale, GumbelTail(scores, location, spread)


def _fitted(scores: Floats) -> GumbelTail:
    """Return the Gumbel law fitted to block scores by maximum likelihood."""
    from scipy import stats  # takes a second to import, and only this function needs it

    location, spread = (float(x) for x in stats.gumbel_r.fit(scores))
    return GumbelTail(scores, location, spread)


def check_rows(values: Floats, columns: tuple[str, ...]) -> None:
    """Raise BadShape unless values are (n, columns), BadValues on an infinite value."""
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise BadShape(f"rows have shape {values.shape}, expected (n, {len(columns)}) for the columns given")
    infinite = np.isinf(values).any(axis=0)
    if infinite.any():
        names = ", ".join(columns[c] for c in np.flatnonzero(infinite))
        raise BadValues(f"infinite values in {names}. Use NaN for missing values; fix the feature or drop it.")
