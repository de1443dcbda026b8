"""Layouts of flat arrays in compiled code, derived from the names of their parts: no offset is counted by hand."""

import math
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from pipelines.contracts import Floats

Part = tuple[int, float]  # how many float64 it holds, and the value each has before the first bar


def offsets(sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the index at which each named part starts in a row that holds them in this order."""
    return tuple(accumulate(sizes.values(), initial=0))[:-1]


def window(size: int) -> Part:
    """Return a part of `size` values in time order, newest last: missing (NaN) when fresh."""
    return size, math.nan


def zeros(size: int) -> Part:
    """Return a part of `size` values that start at 0, as recursions do."""
    return size, 0.0


def lay_out(**parts: Part) -> tuple[tuple[slice, ...], Floats]:
    """Return the slice of each named part of a flat state, in this order, and the fresh state (n,) float64."""
    starts = offsets({name: size for name, (size, _) in parts.items()})
    slices = tuple(slice(start, start + size) for start, (size, _) in zip(starts, parts.values(), strict=True))
    return slices, np.concatenate([np.full(size, fresh) for size, fresh in parts.values()])
