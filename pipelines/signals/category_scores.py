"""CategoryScores: what each category says, and how strongly by its own measure.

Confidence is a percentile of the category's own history (0.70 = stronger than 70 % of what it ever said), never a
probability of direction. A category none of whose signals has its inputs is unavailable: NaN, not 0.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CATEGORIES, Floats, Ints
from pipelines.errors import BadShape, NotEnoughData, StateError
from pipelines.signals.catalog import PRODUCERS, SIGNALS

SCORE_CATEGORIES = (*CATEGORIES, "traditional")
LEVELS = 101  # quantiles a category: whole per cents
_HEARD = [(name, j) for j, category in enumerate(SCORE_CATEGORIES) for name in PRODUCERS[category]]
_SIDE: Ints = np.array([SIGNALS.index[f"{name}.direction"] for name, _ in _HEARD], dtype=np.int64)
_STRENGTH: Ints = np.array([SIGNALS.index[f"{name}.strength"] for name, _ in _HEARD], dtype=np.int64)
_CATEGORY: Ints = np.array([j for _, j in _HEARD], dtype=np.int64)


@kernel
def _speak(rows, side, strength, category, scale, quantiles, total, direction, confidence):  # type: ignore[no-untyped-def]
    """total (n, C): sum over a category's signals of direction * strength / scale; 0 = nothing said, NaN = none of them
    available. Its sign is the direction, the place of its size among the quantiles the confidence."""
    total[:] = np.nan
    confidence[:] = np.nan
    for i in range(rows.shape[0]):
        for s in range(side.shape[0]):
            j = category[s]
            said = rows[i, side[s]]
            if said == said and scale[s] == scale[s]:
                if total[i, j] != total[i, j]:
                    total[i, j] = 0.0
                if said != 0.0:
                    total[i, j] += said * rows[i, strength[s]] / scale[s]
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
    """Calibrated categories.

    scale      signal → median strength where it spoke; a signal that never spoke in the history is not heard
    quantiles  category → 101 quantiles of |sum of direction * strength / scale| over the bars on which it spoke
    shared     category → sum of its correlations with the other categories, those above 0, over that history
    """

    scale: dict[str, float]
    quantiles: dict[str, list[float]]
    shared: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def fit(signals: Floats) -> "CategoryScores":
        """Calibrate on history (n, ks) of SIGNALS. Raises NotEnoughData if no category spoke at all."""
        scale = {}
        for (name, _), at in zip(_HEARD, _STRENGTH, strict=True):
            strength = _checked(signals)[:, at]
            if not np.isnan(strength).all():
                scale[name] = float(np.nanmedian(strength))
        size = np.abs(CategoryScores(scale, {})._answer(signals)[0])
        quantiles = {
            category: np.quantile(size[size[:, j] > 0.0, j], np.linspace(0.0, 1.0, LEVELS)).tolist()
            for j, category in enumerate(SCORE_CATEGORIES)
            if (size[:, j] > 0.0).any()
        }
        if not quantiles:
            raise NotEnoughData(f"no signal spoke in {len(signals)} bars; bring a longer history")
        voices = CategoryScores(scale, quantiles)
        return replace(voices, shared=_shared(*voices.score(signals)))

    @property
    def independence(self) -> Floats:
        """(C,) in (0, 1]: what is left of a category's vote, so that n that always say the same count as one. The
        traditional consensus votes alone, so it shares with nobody."""
        return np.array([1.0 / (1.0 + self.shared.get(category, 0.0)) for category in SCORE_CATEGORIES])

    def score(self, signals: Floats) -> tuple[Floats, Floats]:
        """What the categories say at one bar (ks,) or at n bars (n, ks), in the order of SCORE_CATEGORIES.

        Returns  direction (C,) or (n, C): -1, 0 (says nothing), 1; NaN = unavailable
                 confidence, same shape: percentile in [0, 1]; NaN where direction is 0 or NaN
        """
        _, direction, confidence = self._answer(np.atleast_2d(signals))
        return (direction, confidence) if signals.ndim == 2 else (direction[0], confidence[0])

    def to_json(self) -> str:
        """Text that `from_json` reads back to the same numbers; bound to this catalogue of signals."""
        return json.dumps({"signals": SIGNALS.catalogue_hash, "heard": _HEARD, **asdict(self)}, indent=1)

    @staticmethod
    def from_json(text: str) -> "CategoryScores":
        """Raises StateError if the voices were fitted on another catalogue of signals."""
        data = json.loads(text)
        if data["signals"] != SIGNALS.catalogue_hash or data["heard"] != [list(heard) for heard in _HEARD]:
            raise StateError(
                f"voices fitted on signals {data['signals'][:12]} {data['heard']}, these are "
                f"{SIGNALS.catalogue_hash[:12]} {_HEARD}. Fit them again with CategoryScores.fit."
            )
        return CategoryScores(data["scale"], data["quantiles"], data["shared"])

    @cached_property
    def _tables(self) -> tuple[Floats, Floats]:
        """Scale of every signal heard (NaN = not heard) and quantiles (C, 101) (NaN = the category never spoke)."""
        missing = [np.nan] * LEVELS
        return (
            np.array([self.scale.get(name, np.nan) for name, _ in _HEARD]),
            np.array([self.quantiles.get(category, missing) for category in SCORE_CATEGORIES]),
        )

    def _answer(self, signals: Floats) -> tuple[Floats, Floats, Floats]:
        rows = np.require(_checked(signals), np.float64, ["C", "W"])
        total, direction, confidence = np.empty((3, len(rows), len(SCORE_CATEGORIES)))
        _speak(rows, _SIDE, _STRENGTH, _CATEGORY, *self._tables, total, direction, confidence)
        return total, direction, confidence


def _shared(direction: Floats, confidence: Floats) -> dict[str, float]:
    """Category → Σ of its positive correlations with the others, of n bars of (n, C) statements.

    A statement is side × confidence, 0 where silent, so categories that seldom speak together share little. Each
    correlation is shrunk by its own sampling error, 1 / bars on which both spoke (James and Stein 1961, positive part).
    """
    said = np.where(direction == 0.0, 0.0, direction * confidence)
    said = np.nan_to_num(said)[:, : len(CATEGORIES)]
    both = (said != 0.0).T.astype(np.float64) @ (said != 0.0)
    size = np.sqrt((said**2).sum(axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        alike = (said.T @ said) / np.outer(size, size)
        alike *= np.maximum(0.0, 1.0 - 1.0 / (both * alike**2))
    np.fill_diagonal(alike, 0.0)
    shared = np.maximum(np.nan_to_num(alike), 0.0).sum(axis=1)
    return {name: float(value) for name, value in zip(CATEGORIES, shared, strict=True) if value > 0.0}


def _checked(signals: Floats) -> Floats:
    if signals.ndim != 2 or signals.shape[1] != len(SIGNALS.columns):
        raise BadShape(f"signals have shape {signals.shape}, wanted (n, {len(SIGNALS.columns)}) of SIGNALS.columns")
    return signals
