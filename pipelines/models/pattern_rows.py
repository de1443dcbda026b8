"""Rows of the pattern trees: one row per bar and class, expressed from the side of that class.

Columns that a mirror reverses are multiplied by the class's side, so that a rising and a falling pattern of a class are
the same row, and rare classes share what is learnt from all others. In float32, as in the exported graph.
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
    """Hold positions in a model's columns: unchanged by a mirror, reversed around `centres`, and the classes' sides."""

    even: Ints
    odd: Ints
    centres: Singles
    sides: Ints

    @property
    def width(self) -> int:
        """Return the number of columns of a row: even, odd, sides seen from the class, its side, one-hot class."""
        return len(self.even) + len(self.odd) + 2 * len(self.sides) + 1

    def rows(self, newest: Any) -> Singles:
        """Return (n, classes, width) float32 of newest bars (n, k)."""
        read = np.asarray(newest, dtype=np.float32)
        sides = read[:, self.sides]
        side, flat = sides[:, :, np.newaxis], np.zeros((*sides.shape, 1), np.float32)
        return np.concatenate(
            [
                flat + read[:, np.newaxis, self.even],
                side * (read[:, self.odd] - self.centres)[:, np.newaxis],
                side * sides[:, np.newaxis],
                side,
                flat + np.eye(len(self.sides), dtype=np.float32),
            ],
            axis=2,
        )


def mirror_layout(columns: tuple[str, ...]) -> MirrorLayout:
    """Return the layout of a snapshot's columns; a class whose side is not among them is not predicted."""
    centre = {TAKER: 0.0, **ODD}
    odd = [name for name in columns if name in centre]
    return MirrorLayout(
        even=_places(columns, [name for name in columns if name in EVEN]),
        odd=_places(columns, odd),
        centres=np.array([centre[name] for name in odd], dtype=np.float32),
        sides=_places(columns, [name for name in columns if name in DIRECTIONS]),
    )


def _places(columns: tuple[str, ...], names: list[str]) -> Ints:
    """Return the positions of `names` in `columns`."""
    return np.array([columns.index(name) for name in names], dtype=np.int64)


def share_of_side(direction: Floats) -> Floats:
    """Return (n, classes): 1 / number of classes on the same side of that bar, 0 where a class is absent.

    Their labels are the same event, so together they count once. direction (n, classes) is 1, -1, or 0 for absent.
    """
    present: Bools = direction != 0.0
    same = (direction[:, :, np.newaxis] == direction[:, np.newaxis]) & present[:, np.newaxis]
    return np.where(present, 1.0 / np.maximum(same.sum(axis=2), 1), 0.0)
