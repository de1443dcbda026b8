"""The question put to the trees: one row a bar and class, told from the side that class speaks for.

Columns that a mirror turns round are multiplied by the class's side, so that a rising and a falling pattern of the same
class are the same row, and rare classes learn from all others. In float32, as the exported graph computes them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contracts import Bools, Floats, Ints
from pipelines.models.pattern_view import DIRECTIONS, EVEN, ODD, TAKER

Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MirrorLayout:
    """Positions in a model's columns: what a mirror keeps, what it turns round `centres`, and the classes' sides."""

    even: Ints
    odd: Ints
    centres: Singles
    sides: Ints

    @property
    def width(self) -> int:
        """even + odd + what every class says, seen from this side + the side itself + which class is asked"""
        return len(self.even) + len(self.odd) + 2 * len(self.sides) + 1

    def rows(self, newest: Any) -> Singles:
        """(n, classes, width) of newest bars (n, k)."""
        read = np.asarray(newest, dtype=np.float32)
        said = read[:, self.sides]
        side, flat = said[:, :, np.newaxis], np.zeros((*said.shape, 1), np.float32)
        return np.concatenate(
            [
                flat + read[:, np.newaxis, self.even],
                side * (read[:, self.odd] - self.centres)[:, np.newaxis],
                side * said[:, np.newaxis],
                side,
                flat + np.eye(len(self.sides), dtype=np.float32),
            ],
            axis=2,
        )


def mirror_layout(columns: tuple[str, ...]) -> MirrorLayout:
    """Of the columns a snapshot has left; a class whose side is not among them is not answered."""
    centre = {TAKER: 0.0, **ODD}
    odd = [name for name in columns if name in centre]
    return MirrorLayout(
        even=_places(columns, [name for name in columns if name in EVEN]),
        odd=_places(columns, odd),
        centres=np.array([centre[name] for name in odd], dtype=np.float32),
        sides=_places(columns, [name for name in columns if name in DIRECTIONS]),
    )


def _places(columns: tuple[str, ...], names: list[str]) -> Ints:
    return np.array([columns.index(name) for name in names], dtype=np.int64)


def share_of_side(direction: Floats) -> Floats:
    """(n, classes): 1 / number of classes that speak for the same side on that bar, 0 where a class is not there.
    Their labels are the same event, so together they count once."""
    there: Bools = direction != 0.0
    same = (direction[:, :, np.newaxis] == direction[:, np.newaxis]) & there[:, np.newaxis]
    return np.where(there, 1.0 / np.maximum(same.sum(axis=2), 1), 0.0)
