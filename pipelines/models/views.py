"""The inputs of each family at a decision bar: the last `steps` closed bars as named columns.

Training builds the views of a whole history; the live service builds the view of the newest bar from the rows it
retains. Both call the same function, and a view reads nothing outside its own window, so both give the same bytes (L2).
The validator is not here: it reads events, whose rows `signals.events` makes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipelines.contracts import Floats, History, Ints, Model
from pipelines.errors import WrongSchema
from pipelines.features.catalog import CORE_COLUMNS, FEATURES
from pipelines.models import pattern_view
from pipelines.models.regime import inputs as regime_inputs
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS


@dataclass(frozen=True, slots=True)
class View:
    """Define what a family reads at a decision bar.

    columns  names, in order
    steps    bars of the window; the newest is the bar decided on
    build    (history, positions (n,)) → (n, steps, len(columns)); NaN where a value is missing or the history is short
    whole    n histories of at least `steps` bars → the same of the newest bar of each
    """

    columns: tuple[str, ...]
    steps: int
    build: Callable[[History, Ints], Floats]
    whole: Callable[[Sequence[History]], Floats]

    def newest(self, histories: Sequence[History]) -> Floats:
        """Return (n, steps, len(columns)) of the newest bar of each history: the live view, as `build` makes it."""
        if all(len(history) >= self.steps for history in histories):
            return self.whole(histories)
        return np.concatenate([self.build(history, np.array([len(history) - 1])) for history in histories])


def windows(values: Floats, at: Ints, steps: int) -> Floats:
    """Return (n, steps, k) copies of the rows `at - steps + 1 … at` of values (m, k); NaN before the first row."""
    rows = at[:, np.newaxis] + np.arange(1 - steps, 1)
    out: Floats = values[np.maximum(rows, 0)]
    out[rows < 0] = np.nan
    return out


def feature_view(columns: tuple[str, ...], steps: int) -> View:
    """Return the view of these columns of the feature catalogue over `steps` bars."""
    places = [FEATURES.index[name] for name in columns]

    def build(history: History, at: Ints) -> Floats:
        """Return the windows of these columns; only the bars that they reach are read."""
        first = max(0, int(at.min()) - steps + 1) if len(at) else 0
        return windows(history.features[first : int(at.max(initial=-1)) + 1, places], at - first, steps)

    def whole(histories: Sequence[History]) -> Floats:
        """Return the newest window of each."""
        return np.stack([history.features[-steps:, places] for history in histories])

    return View(columns, steps, build, whole)


def select(rows: Floats, have: tuple[str, ...], want: tuple[str, ...]) -> Floats:
    """Return (…, len(want)): the wanted columns of rows (…, len(have)); a column that they lack is NaN."""
    if have == want:
        return rows
    places, lacks = _places(have, want)
    if not lacks:
        return rows[..., places]
    missing = np.full((*rows.shape[:-1], 1), np.nan)
    return np.concatenate([rows, missing], axis=-1)[..., places]


def check_schema(model: Model) -> None:
    """Raise WrongSchema if a model reads columns or a window that this release does not compute."""
    view = VIEWS.get(model.family)
    columns, steps = (VALIDATOR_COLUMNS, 1) if view is None else (view.columns, view.steps)
    unknown = [name for name in model.columns if name not in columns]
    if unknown or model.steps not in (1, steps):
        raise WrongSchema(
            f"{model.family} {model.digest[:12]} reads {unknown or 'known columns'} over {model.steps} bars; this "
            f"release gives a {model.family} {len(columns)} columns over {steps}. Train it again with this release: "
            f"`bellwether retrain {model.family}`"
        )


@cache
def _places(have: tuple[str, ...], want: tuple[str, ...]) -> tuple[Ints, bool]:
    """Return the position in `have` of each wanted column, len(have) for one it lacks, and whether it lacks any."""
    at = {name: j for j, name in enumerate(have)}
    places = np.array([at.get(name, len(have)) for name in want])
    return places, bool((places == len(have)).any())


VIEWS: dict[str, View] = {
    "predictor": feature_view(CORE_COLUMNS, 60),
    "regime": View(regime_inputs.COLUMNS, regime_inputs.STEPS, regime_inputs.build, regime_inputs.whole),
    "pattern": View(pattern_view.COLUMNS, pattern_view.STEPS, pattern_view.build, pattern_view.whole),
}
