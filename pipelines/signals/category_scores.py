"""CategoryScores: the direction of each signal category, and its confidence by the category's own measure.

Confidence is a percentile of the category's own history (0.70 = stronger than 70 % of its scores), never a
probability of direction. A category none of whose signals has its inputs is unavailable: NaN, not 0.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CATEGORIES, SCORE_NAMES, Floats, Ints
from pipelines.errors import BadShape, NotEnoughData, StateError
from pipelines.renamed_keys import current_names
from pipelines.signals.catalog import PRODUCERS, SIGNALS

LEVELS = 101  # quantiles a category: whole per cents
_SIGNALS_USED = [(name, j) for j, category in enumerate(SCORE_NAMES) for name in PRODUCERS[category]]
_SIDE: Ints = np.array([SIGNALS.index[f"{name}.direction"] for name, _ in _SIGNALS_USED], dtype=np.int64)
_STRENGTH: Ints = np.array([SIGNALS.index[f"{name}.strength"] for name, _ in _SIGNALS_USED], dtype=np.int64)
_CATEGORY: Ints = np.array([j for _, j in _SIGNALS_USED], dtype=np.int64)


@kernel
def _score_rows(
    rows: Floats,
    side: Ints,
    strength: Ints,
    category: Ints,
    scale: Floats,
    quantiles: Floats,
    total: Floats,
    direction: Floats,
    confidence: Floats,
) -> None:
    """Fill total, direction and confidence (n, C) float64 of n rows (n, ks) float64.

    total  sum over a category's signals of direction * strength / scale; 0 = neutral, NaN = none of them available. Its
           sign is the direction, the place of its size among quantiles (C, 101) the confidence
    side, strength, category  (s,) int64: columns and category of each signal; scale (s,) float64
    """
    total[:] = np.nan
    confidence[:] = np.nan
    for i in range(rows.shape[0]):
        for s in range(side.shape[0]):
            j = category[s]
            value = rows[i, side[s]]
            if value == value and scale[s] == scale[s]:
                if total[i, j] != total[i, j]:
                    total[i, j] = 0.0
                if value != 0.0:
                    total[i, j] += value * rows[i, strength[s]] / scale[s]
        for j in range(total.shape[1]):
            direction[i, j] = np.sign(total[i, j])
            size = abs(total[i, j])
            if size > 0.0:
                levels = quantiles[j]
                k = np.searchsorted(levels, size)  # the first level not below it
                if k == 0:
                    confidence[i, j] = 0.0
                elif k == levels.shape[0]:
                    confidence[i, j] = 1.0
                else:
                    part = (size - levels[k - 1]) / (levels[k] - levels[k - 1])
                    confidence[i, j] = (k - 1 + part) / (levels.shape[0] - 1)


@dataclass(frozen=True)
class CategoryScores:
    """Hold the calibration of the signal categories.

    scale      signal → median strength where it had a side; a signal that never had one in the history is not used
    quantiles  category → 101 quantiles of |sum of direction * strength / scale| over the bars on which it had a side
    shared     category → sum of its correlations with the other categories, those above 0, over that history
    """

    scale: dict[str, float]
    quantiles: dict[str, list[float]]
    shared: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def fit(signals: Floats) -> "CategoryScores":
        """Return scores calibrated on history (n, ks) of SIGNALS. Raises NotEnoughData if all were neutral."""
        scale = {}
        for (name, _), at in zip(_SIGNALS_USED, _STRENGTH, strict=True):
            strength = _checked(signals)[:, at]
            if not np.isnan(strength).all():
                scale[name] = float(np.nanmedian(strength))
        size = np.abs(CategoryScores(scale, {})._score_all(signals)[0])
        quantiles = {
            category: np.quantile(size[size[:, j] > 0.0, j], np.linspace(0.0, 1.0, LEVELS)).tolist()
            for j, category in enumerate(SCORE_NAMES)
            if (size[:, j] > 0.0).any()
        }
        if not quantiles:
            raise NotEnoughData(f"every signal was neutral in {len(signals)} bars. Bring a longer history.")
        scores = CategoryScores(scale, quantiles)
        return replace(scores, shared=_shared(*scores.score(signals)))

    @cached_property
    def independence(self) -> Floats:
        """Return (C,) in (0, 1], the share left of a category's vote: n categories that always agree count as one.

        The traditional consensus votes alone, so its share is 1.
        """
        found = np.array([1.0 / (1.0 + self.shared.get(category, 0.0)) for category in SCORE_NAMES])
        found.setflags(write=False)  # every decision reads this one
        return found

    def score(self, signals: Floats) -> tuple[Floats, Floats]:
        """Return the scores at one bar (ks,) or at n bars (n, ks), in the order of SCORE_NAMES.

        Returns  direction (C,) or (n, C): -1, 0 (neutral), 1; NaN = unavailable
                 confidence, same shape: percentile in [0, 1]; NaN where direction is 0 or NaN
        """
        _, direction, confidence = self._score_all(np.atleast_2d(signals))
        return (direction, confidence) if signals.ndim == 2 else (direction[0], confidence[0])

    def to_json(self) -> str:
        """Return text that `from_json` reads back to the same numbers; bound to this catalogue of signals."""
        return json.dumps({"signals": SIGNALS.catalogue_hash, "signals_used": _SIGNALS_USED, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> "CategoryScores":
        """Return the scores that `to_json` wrote, also under the names of release 0.5.0.

        Raises StateError if they were fitted on another catalogue of signals.
        """
        data = current_names("category scores", json.loads(text))
        if data["signals"] != SIGNALS.catalogue_hash or data["signals_used"] != [list(used) for used in _SIGNALS_USED]:
            raise StateError(
                f"category scores fitted on signals {data['signals'][:12]}, this release has "
                f"{SIGNALS.catalogue_hash[:12]}. `bellwether up` folds the history again."
            )
        return CategoryScores(data["scale"], data["quantiles"], data["shared"])

    @cached_property
    def _tables(self) -> tuple[Floats, Floats]:
        """Return the scale of every signal (NaN = not used) and quantiles (C, 101) (NaN = always neutral)."""
        missing = [np.nan] * LEVELS
        return (
            np.array([self.scale.get(name, np.nan) for name, _ in _SIGNALS_USED]),
            np.array([self.quantiles.get(category, missing) for category in SCORE_NAMES]),
        )

    def _score_all(self, signals: Floats) -> tuple[Floats, Floats, Floats]:
        """Return total, direction and confidence, each (n, C), of signals (n, ks). Raises BadShape."""
        rows = _checked(signals)
        if not (rows.flags.carray and rows.dtype == np.float64):
            rows = np.require(rows, np.float64, ["C", "W"])
        total, direction, confidence = np.empty((3, len(rows), len(SCORE_NAMES)))
        _score_rows(rows, _SIDE, _STRENGTH, _CATEGORY, *self._tables, total, direction, confidence)
        return total, direction, confidence


def _shared(direction: Floats, confidence: Floats) -> dict[str, float]:
    """Return category → Σ of its positive correlations with the others, from n bars of (n, C) scores.

    The correlated value is side × confidence, 0 where neutral, so categories seldom active together share little.
    Each correlation is shrunk by its own sampling error, 1 / bars on which both were active (James and Stein 1961,
    positive part).
    """
    score = np.where(direction == 0.0, 0.0, direction * confidence)
    score = np.nan_to_num(score)[:, : len(CATEGORIES)]
    both = (score != 0.0).T.astype(np.float64) @ (score != 0.0)
    size = np.sqrt((score**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        alike = (score.T @ score) / np.outer(size, size)
        alike *= np.maximum(0.0, 1.0 - 1.0 / (both * alike**2))
    np.fill_diagonal(alike, 0.0)
    shared = np.maximum(np.nan_to_num(alike), 0.0).sum(axis=1)
    return {name: float(value) for name, value in zip(CATEGORIES, shared, strict=True) if value > 0.0}


def _checked(signals: Floats) -> Floats:
    """Return the signals unchanged. Raises BadShape unless they are (n, ks)."""
    if signals.ndim != 2 or signals.shape[1] != len(SIGNALS.columns):
        raise BadShape(f"signals have shape {signals.shape}, wanted (n, {len(SIGNALS.columns)}) of SIGNALS.columns")
    return signals
