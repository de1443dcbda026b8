"""Trees as flat arrays, walked by kernels of our own: the runtime "compiled-1" of a bundle's model file.

What a tree reads is a row in float32, then its negative. A test passes where read[feature] < threshold: a missing
value fails every one, and `-x < the number after -t` is `x >= t`, so either side of a split can be that of missing
values. The nodes of a tree stand breadth first, the two under a test next to each other, the one for rows that pass
first: where the leaves are says where every child is. The leaves of a row are added in the order of the trees and in
their own type, as the library that fitted them adds: margins equal XGBoost's and means scikit-learn's bit for bit.

Two kernels give the same sums. `walk` takes all trees of one row a step down at a time: these steps do not wait for
each other. `quick_scorer` makes each test of a tree for 64 rows at once and keeps as bits which leaves a row can still
reach; nothing in it waits, but all tests are made, so it pays for many rows.
Source  Lucchese et al. 2015, QuickScorer, SIGIR: the bits; there for one row at a time.
"""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Arrays, Bools, Floats, Ints
from pipelines.errors import BadShape, BundleError

LINKS: Final = ("margin", "logistic", "mean")  # what is made of a sum
MARGIN, LOGISTIC, MEAN = range(3)
LEAF: Final = -1  # in `feature`
BLOCK: Final = (
    64  # rows that `quick_scorer` takes at once, and bits of a word: forests with a tree of more leaves are walked
)
QUICK_SCORER_FROM = 48  # rows; fewer are walked sooner
NODES: Final = {"feature": np.int32, "threshold": np.float32}
MIRROR: Final = {"even": np.int64, "odd": np.int64, "centres": np.float32, "sides": np.int64}
STEP = np.dtype([("threshold", np.float32), ("feature", np.uint32), ("child", np.uint32)])
TEST = np.dtype([("threshold", np.float32), ("feature", np.uint32), ("keeps", np.uint64)])
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
# the top six bits of the product of this number with a power of two say which power it is (de Bruijn)
SEQUENCE, TOP_SIX, ONE = np.uint64(0x022FDD63CC95386D), np.uint64(58), np.uint64(1)
POSITION = np.zeros(BLOCK, np.uint64)
for _bit in range(BLOCK):
    POSITION[(0x022FDD63CC95386D << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


# ---- kernels --------------------------------------------------------------------------------------------------------


@kernel
def linked(total: Any, trees: int, link: int) -> float:
    """Return what the link makes of the sum of the leaves of so many trees."""
    if link == LOGISTIC:
        return 1.0 / (1.0 + math.exp(-np.float64(total)))
    if link == MEAN:
        return np.float64(total) / trees
    return np.float64(total)


@kernel
def walk(rows: Floats, steps: Any, value: Any, roots: Ints, base: Any, depth: int, link: int) -> Floats:
    """Return (n, 1) linked sums of rows (n, k) by all steps (nodes,) of the trees, the deepest of which is `depth`."""
    n, k, trees = rows.shape[0], rows.shape[1], roots.shape[0]
    read, at, out = np.zeros(2 * k + 1, np.float32), np.empty(trees, np.uint32), np.empty((n, 1))
    for r in range(n):
        for j in range(k):
            read[j] = rows[r, j]
            read[k + j] = -read[j]
        for t in range(trees):
            at[t] = roots[t]
        for _ in range(depth):
            for t in range(trees):
                step = steps[at[t]]
                at[t] = step["child"] + (0 if read[step["feature"]] < step["threshold"] else 1)
        total = base[0]
        for t in range(trees):
            total += value[at[t]]
        out[r, 0] = linked(total, trees, link)
    return out


@kernel
def quick_scorer(rows: Floats, tests: Any, ends: Ints, leaves: Any, first_leaf: Ints, base: Any, link: int) -> Floats:
    """Return (n, 1) linked sums of rows (n, k), 64 at a time.

    tests              (inner nodes,) of all trees: a row that fails one reaches only the leaves that it `keeps`
    ends, first_leaf   (trees,) where the tests of a tree end, and where its leaves begin
    leaves             (leaves,) values; the lowest bit that is left says which leaf of the tree it is
    """
    n, k, trees = rows.shape[0], rows.shape[1], ends.shape[0]
    read, reach = np.empty((2 * k, BLOCK), np.float32), np.empty(BLOCK, np.uint64)
    total, out = np.empty(BLOCK, leaves.dtype), np.empty((n, 1))
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        for r in range(BLOCK):
            row = rows[start + min(r, size - 1)]
            for j in range(k):
                read[j, r] = row[j]
                read[k + j, r] = -read[j, r]
            total[r] = base[0]
        begin = 0
        for t in range(trees):
            for r in range(BLOCK):
                reach[r] = ALL
            for i in range(begin, ends[t]):
                test = tests[i]
                column, threshold, keeps = read[test["feature"]], test["threshold"], test["keeps"]
                for r in range(BLOCK):
                    reach[r] &= ALL if column[r] < threshold else keeps
            begin = ends[t]
            for r in range(BLOCK):
                lowest = reach[r] & (~reach[r] + ONE)
                total[r] += leaves[first_leaf[t] + POSITION[lowest * SEQUENCE >> TOP_SIX]]
        for r in range(size):
            out[start + r, 0] = linked(total[r], trees, link)
    return out


@kernel
def mirrored(rows: Floats, even: Ints, odd: Ints, centres: Any, sides: Ints) -> tuple[Floats, Ints]:
    """Return a row for each of rows (n, k) and each side that is not 0, as `pattern_rows.MirrorLayout.rows` makes them.

    Returns  (m, width) values of float32, row by row and side by side; (m,) the place of each in (n, sides), flat
    """
    n, classes = rows.shape[0], sides.shape[0]
    width = even.shape[0] + odd.shape[0] + 2 * classes + 1
    out, places, m = np.zeros((n * classes, width)), np.empty(n * classes, np.int64), 0
    for r in range(n):
        for c in range(classes):
            side = np.float32(rows[r, sides[c]])
            if side == 0.0:
                continue
            at = 0
            for j in range(even.shape[0]):
                out[m, at] = np.float32(rows[r, even[j]])
                at += 1
            for j in range(odd.shape[0]):
                out[m, at] = side * (np.float32(rows[r, odd[j]]) - centres[j])
                at += 1
            for other in range(classes):
                out[m, at] = side * np.float32(rows[r, sides[other]])
                at += 1
            out[m, at] = side
            out[m, at + 1 + c] = 1.0
            places[m] = r * classes + c
            m += 1
    return out[:m], places[:m]


# ---- a model's file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompiledTrees:
    """Implement scorers.Scorer with trees of two classes: the probability of the second.

    columns     how many a row has
    mirror      None, or MIRROR's arrays: the trees read a row per side, and where a side is 0 its probability is 0
    walked      what `walk` takes between rows and link
    quick       what `quick_scorer` takes there; None where a tree has more than 64 leaves
    """

    columns: int
    mirror: tuple[Any, ...] | None
    link: int
    walked: tuple[Any, ...]
    quick: tuple[Any, ...] | None

    def probabilities(self, rows: Floats) -> Floats:
        """Return (n, 1), or (n, sides) of mirrored trees, of rows (n, columns). Raises BadShape."""
        if rows.ndim != 2 or rows.shape[1] != self.columns:  # kernels check no bounds
            raise BadShape(f"rows {rows.shape} for trees of {self.columns} columns")
        rows = np.ascontiguousarray(rows, np.float64)
        if self.mirror is None:
            return self.sums(rows, self.link)
        turned, places = mirrored(rows, *self.mirror)
        p = np.zeros((len(rows), len(self.mirror[-1])))
        p.reshape(-1)[places] = self.sums(turned, self.link)[:, 0]
        return p

    def sums(self, read: Floats, link: int = MARGIN) -> Floats:
        """Return (n, 1) linked sums of what the trees read (n, width), contiguous float64; by default the bare sums."""
        if self.quick is None or len(read) < QUICK_SCORER_FROM:
            sums: Floats = walk(read, *self.walked, link)
        else:
            sums = quick_scorer(read, *self.quick, link)
        return sums


def read_trees(path: Path, columns: int) -> CompiledTrees:
    """Return the trees of an .npz that `trees_export` wrote, for rows of so many columns.

    Raises  BundleError naming the array that is missing or wrong: no kernel reads outside its arrays
    """
    try:
        with np.load(path, allow_pickle=False) as f:
            return compiled_trees({name: f[name] for name in f.files}, columns)
    except (BundleError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: {error}. Restore it from a backup, or run `bellwether retrain`.") from error


def compiled_trees(arrays: Arrays, columns: int) -> CompiledTrees:
    """Check arrays of `trees_export` and return the trees as kernels read them; errors as of `read_trees`."""
    width, mirror = _checked_mirror(arrays, columns)
    _check_trees(arrays, width)
    feature, value, roots = arrays["feature"], arrays["value"], arrays["roots"].astype(np.int64)
    inner, tree, child = _children(feature, roots)
    steps = np.zeros(len(feature), STEP)  # what is read ends with a 0: a leaf's test is 0 < 1 and leads to itself
    steps["feature"] = np.where(inner, feature, 2 * width)
    steps["threshold"] = np.where(inner, arrays["threshold"], np.float32(1.0))
    steps["child"] = np.where(inner, child, np.arange(len(feature)))
    base, levels = arrays["base"].reshape(1), _levels(inner, child, roots)
    walked = (steps, value, roots.astype(np.uint32), base, len(levels))
    under = (~inner).astype(np.int64)  # number of leaves under each node
    for at in reversed(levels):
        under[at] = under[child[at]] + under[child[at] + 1]
    first = under[roots].cumsum()[tree] - under[roots][tree]  # the first leaf under each node, of those of all trees
    for at in levels:
        first[child[at]] = first[at]
        first[child[at] + 1] = first[at] + under[child[at]]
    quick = None
    if under[roots].max() <= BLOCK:
        leaves = np.empty(int((~inner).sum()), value.dtype)
        leaves[first[~inner]] = value[~inner]
        tests, passed = np.zeros(int(inner.sum()), TEST), child[inner]
        tests["feature"], tests["threshold"] = steps["feature"][inner], steps["threshold"][inner]
        # a row that fails loses the leaves under the first child, at most 63
        at_bit = (first[passed] - first[roots][tree[inner]]).astype(np.uint64)
        tests["keeps"] = ~(((ONE << under[passed].astype(np.uint64)) - ONE) << at_bit)
        ends = np.cumsum(np.bincount(tree[inner], minlength=len(roots)))
        quick = (tests, ends, leaves, first[roots].astype(np.uint64), base)
    return CompiledTrees(columns, mirror, LINKS.index(str(arrays["link"])), walked, quick)


def _children(feature: Ints, roots: Ints) -> tuple[Bools, Ints, Ints]:
    """Return of each node whether it has a test, its tree, and its first child: the i-th test of a tree has 1 + 2i."""
    inner = feature > LEAF
    tree = np.repeat(np.arange(len(roots)), np.diff(np.append(roots, len(feature))))
    before: Ints = np.cumsum(inner) - inner
    return inner, tree, roots[tree] + 1 + 2 * (before - before[roots][tree])


def _levels(inner: Bools, child: Ints, roots: Ints) -> list[Ints]:
    """Return the nodes with a test of all trees by depth, roots first."""
    levels, at = [], roots[inner[roots]]
    while len(at):
        levels.append(at)
        below = np.concatenate([child[at], child[at] + 1])
        at = below[inner[below]]
    return levels


def _checked_mirror(arrays: Arrays, columns: int) -> tuple[int, tuple[Any, ...] | None]:
    """Return how many values of a row with so many columns the trees read, and the mirror's arrays if there are any."""
    stated = arrays.get("columns")
    _require(stated is not None and stated.shape == () and stated == columns, "columns", f"is {stated}, not {columns}")
    if not set(MIRROR) & set(arrays):
        return columns, None
    for name, kind in MIRROR.items():
        _check_array(arrays, name, kind)
        if kind is np.int64:
            inside = (arrays[name] >= 0) & (arrays[name] < columns)
            _require(bool(inside.all()), name, f"has a column outside the {columns}")
    _require(len(arrays["centres"]) == len(arrays["odd"]), "centres", "has another length than odd")
    _require(bool(np.isfinite(arrays["centres"]).all()), "centres", "is not finite")
    width = len(arrays["even"]) + len(arrays["odd"]) + 2 * len(arrays["sides"]) + 1
    return width, tuple(arrays[name] for name in MIRROR)


def _check_trees(arrays: Arrays, width: int) -> None:
    """Raise BundleError unless the arrays are whole trees that read `width` values."""
    for name, node in {**NODES, "roots": np.int32}.items():
        _check_array(arrays, name, node)
    _require("link" in arrays and str(arrays["link"]) in LINKS, "link", f"is none of {', '.join(LINKS)}")
    kind = arrays["value"].dtype if "value" in arrays else None
    _require(kind in (np.float32, np.float64), "value", "is not float32 or float64")
    _check_array(arrays, "value", kind)
    base = arrays.get("base")
    single = base is not None and base.shape == () and base.dtype == kind and bool(np.isfinite(base))
    _require(single, "base", "is no finite number of the type of value")
    n, roots, feature = len(arrays["feature"]), arrays["roots"].astype(np.int64), arrays["feature"]
    for name in ("threshold", "value"):
        _require(len(arrays[name]) == n, name, f"has {len(arrays[name])} entries, feature has {n}")
    rising = len(roots) > 0 and roots[0] == 0 and bool((np.diff(roots) > 0).all()) and roots[-1] < n
    _require(rising, "roots", f"does not rise from 0 within the {n} nodes")
    known = (feature >= LEAF) & (feature < 2 * width)
    _require(bool(known.all()), "feature", f"has a place outside the {2 * width} that trees read")
    inner, tree, child = _children(feature, roots)
    whole = np.diff(np.append(roots, n)) == 1 + 2 * np.bincount(tree[inner], minlength=len(roots))
    _require(bool(whole.all()), "feature", "has trees without one leaf more than tests")
    _require(bool((child > np.arange(n))[inner].all()), "feature", "has tests that are not breadth first")
    _require(not np.isnan(arrays["threshold"][inner]).any(), "threshold", "of a test is no number")
    _require(bool(np.isfinite(arrays["value"][~inner]).all()), "value", "of a leaf is not finite")


def _check_array(arrays: Arrays, name: str, kind: Any) -> None:
    """Raise BundleError unless there is such an array (n,) of this type."""
    _require(name in arrays, name, "is missing")
    found = arrays[name]
    _require(
        found.ndim == 1 and found.dtype == kind, name, f"is {found.dtype} {found.shape}, not {np.dtype(kind)} (n,)"
    )


def _require(holds: bool, name: str, otherwise: str) -> None:
    """Raise BundleError about an array unless something holds of it."""
    if not holds:
        raise BundleError(f"{name} {otherwise}")
