"""A streaming fold: compiled steps run in turn over one flat state (laws L2 and L3).

Every step has the signature `(state, bar, book, context, out)`, all float64 and C-contiguous: its slice of the state,
bar (9,), book (2, levels, 3), context (CONTEXT_WIDTH,), and the columns it writes. Batch training loops over the step,
serving calls the same step once a bar, so both give the same bytes. A step reads the bar, the records known at its
close, and its own state, nothing later. A value that is not finite (warm-up, a missing input, a division by zero) is
missing: NaN, always the same NaN.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipelines.compiled import Kernel, cache_dir
from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_WIDTH, NO_CONTEXT
from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, NO_BOOK, Floats, Ints
from pipelines.data.bar_clock import CLOCKED_WIDTH, clocked, clocked_bar
from pipelines.errors import BadShape, StateError


@dataclass(frozen=True, slots=True)
class Column:
    """Describe one value that a step writes at each bar's close.

    category  price, volume, book, technical, traditional, validator, regime; of signals the score category
    unit      what 1.0 means; low, high: the documented range, infinite where there is none
    warmup    bars until the first value: it stands on row warmup - 1 (a sparse column: not before that row)
    source    paper, library convention or ruling
    copy_of   the column(s) it follows from exactly, joined by " and "; models drop it
    needs     extra input without which it is always missing: "volume", "taker", "book", "context:<field>" of
              context_layout.CONTEXT_FIELDS; several joined by " and " (all of them) or " or " (one is enough)
    sparse    has a value only on the bars where something happens
    """

    name: str
    category: str
    unit: str
    low: float
    high: float
    warmup: int
    formula: str
    source: str
    copy_of: str | None = None
    needs: str | None = None
    sparse: bool = False


@dataclass(frozen=True, slots=True)
class FeatureGroup:
    """Hold one compiled step and the columns it writes, in order. `initial` is its fresh state, (n,) float64.

    combines  its `out` is the bar's whole row so far: the columns of the groups before it, and its own last
    """

    name: str
    step: Any
    columns: tuple[Column, ...]
    initial: Floats
    combines: bool = False


class StreamingFold:
    """Run the feature groups of one catalogue in turn. Nothing is compiled before the first `run` or `step`."""

    def __init__(self, name: str, groups: Sequence[FeatureGroup]) -> None:
        """Take the groups in the order in which they run. Raises BadShape if a column name occurs twice."""
        self.name = name
        self.groups = tuple(groups)
        self.catalogue = tuple(column for group in self.groups for column in group.columns)
        self.columns = tuple(column.name for column in self.catalogue)
        self.index = {column: i for i, column in enumerate(self.columns)}
        self.warmup: Ints = np.array([column.warmup for column in self.catalogue], dtype=np.int64)
        if len(self.index) != len(self.columns):
            raise BadShape(f"fold {name}: a column name occurs twice; every name must be unique")

    @cached_property
    def catalogue_hash(self) -> str:
        """Return the sha256 of the columns and of the code of their kernels (comments and layout left out)."""
        digest = hashlib.sha256()
        for column in self.catalogue:
            digest.update(repr(column).encode())
        for path in sorted({path for group in self.groups for path in _sources(group.step)}):
            digest.update(_code(path).encode())
        return digest.hexdigest()

    def fresh(self) -> Floats:
        """Return a new flat state (n,) float64, as before the first bar."""
        return np.concatenate([group.initial for group in self.groups])

    def group_state(self, state: Floats, name: str) -> Floats:
        """Return the slice of `state` that belongs to one group (a view). Raises StateError for an unknown name."""
        start = 0
        for group in self.groups:
            if group.name == name:
                return state[start : start + len(group.initial)]
            start += len(group.initial)
        raise StateError(f"fold {self.name} has no group {name!r}; known: {', '.join(f.name for f in self.groups)}")

    def run(
        self, bars: Floats, books: Floats | None = None, contexts: Floats | None = None, state: Floats | None = None
    ) -> Floats:
        """Return the rows of a history.

        bars      (n, CLOCKED_WIDTH) in time order, as `bar_clock.clocked` gives them; (n, 9) columns of BAR_FIELDS are
                  of a market open day and night
        books     (n, 2, levels, 3) the book known at each bar's close, NaN where none was; None = no book at all
        contexts  (n, CONTEXT_WIDTH) context known then, columns of context_layout.CONTEXT_FIELDS; None = nothing
        state     mutated when given, so that what follows can be stepped live; None = a fresh one
        Returns   (n, k) float64, row i known at the close of bar i; NaN = missing or warming up
        Raises    BadShape, StateError
        """
        if bars.ndim != 2 or bars.shape[1] not in (BAR_WIDTH, CLOCKED_WIDTH):
            raise BadShape(f"bars have shape {bars.shape}, wanted (n, {BAR_WIDTH}): {', '.join(BAR_FIELDS)}")
        bars = np.require(clocked(bars) if bars.shape[1] == BAR_WIDTH else bars, np.float64, ["C", "W"])
        n = len(bars)
        books = np.empty((n, 2, 0, 3)) if books is None else np.require(books, np.float64, ["C", "W"])
        if books.ndim != 4 or books.shape[:2] != (n, 2) or books.shape[3] != 3:
            raise BadShape(f"books have shape {books.shape}, wanted ({n}, 2, levels, 3)")
        contexts = np.tile(NO_CONTEXT, (n, 1)) if contexts is None else np.require(contexts, np.float64, ["C", "W"])
        if contexts.shape != (n, CONTEXT_WIDTH):
            raise BadShape(
                f"contexts have shape {contexts.shape}, wanted ({n}, {CONTEXT_WIDTH}): {', '.join(CONTEXT_FIELDS)}"
            )
        out = np.empty((n, len(self.columns)))
        self._module.run(self.fresh() if state is None else self._checked(state), bars, books, contexts, out)
        return out

    def step(self, state: Floats, bar: Floats, book: Floats = NO_BOOK, context: Floats = NO_CONTEXT) -> Floats:
        """Return the row (k,) float64 that `run` gives for one live bar; mutates `state`.

        bar (CLOCKED_WIDTH,) or (9,), as of `run`; book (2, levels, 3), context (CONTEXT_WIDTH,). Raises BadShape,
        StateError.
        """
        bar = _flat(clocked_bar(bar) if bar.shape == (BAR_WIDTH,) else bar)
        book, context = _flat(book), _flat(context)
        shaped = book.ndim == 3 and book.shape[0] == 2 and book.shape[2] == 3
        if bar.shape != (CLOCKED_WIDTH,) or not shaped or context.shape != (CONTEXT_WIDTH,):
            raise BadShape(
                f"bar {bar.shape}, book {book.shape} and context {context.shape}, wanted "
                f"({BAR_WIDTH},), (2, levels, 3) and ({CONTEXT_WIDTH},)"
            )
        out = np.empty(len(self.columns))
        self._module.step(self._checked(state), bar, book, context, out)
        return out

    def dump(self, state: Floats) -> bytes:
        """Return a state as bytes: catalogue hash (64 ASCII characters), then little-endian float64."""
        return self.catalogue_hash.encode() + self._checked(state).astype("<f8").tobytes()

    def load(self, data: bytes) -> Floats:
        """Return the state that `dump` wrote.

        Raises StateError if it was written under another catalogue or is cut short.
        """
        theirs, size = data[:64].decode("ascii", "replace"), (len(data) - 64) / 8
        if theirs != self.catalogue_hash:
            raise StateError(
                f"{self.name} state of catalogue {theirs[:12]!r}, this release has {self.catalogue_hash[:12]}. "
                "`bellwether up` folds the history again."
            )
        if size != len(self.fresh()):
            raise StateError(f"{self.name} state holds {size:g} numbers, wanted {len(self.fresh())}: it is cut short")
        return np.frombuffer(data, dtype="<f8", offset=64).astype(np.float64)

    def _checked(self, state: Floats) -> Floats:
        """Return a state unchanged. Raises StateError unless it is contiguous writeable float64 of this fold's size."""
        if state.shape != (self._size,) or state.dtype != np.float64 or not state.flags.carray:
            raise StateError(
                f"{self.name} state has shape {state.shape} {state.dtype}, wanted ({self._size},) contiguous "
                "writeable float64: use fresh() or load()"
            )
        return state

    @cached_property
    def _size(self) -> int:
        """Return how many numbers the flat state holds."""
        return sum(len(group.initial) for group in self.groups)

    @cached_property
    def _module(self) -> ModuleType:
        """Return the composite step, written as a module so that numba's disk cache finds it again."""
        source = _composite(self.name, self.groups)
        name = f"fold_{self.name}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        path = cache_dir() / "folds" / f"{name}.py"
        if (
            not path.is_file() or path.read_text() != source
        ):  # it is about to be run: never a file that was replaced or cut short
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(source)
            draft.chmod(0o600)
            draft.replace(path)  # whole or not at all: another process may be importing it
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise StateError(f"cannot import the generated fold {path}; remove its folder and start again")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _flat(values: Floats) -> Floats:
    """Return `values` contiguous and writeable, so that no kernel is compiled for another array type on a request."""
    if values.dtype == np.float64 and values.flags.carray:
        return values
    return np.array(values, dtype=np.float64, order="C")


def _composite(name: str, groups: tuple[FeatureGroup, ...]) -> str:
    """Return the source of the module that runs the groups in turn; its slices are literal, so they cost nothing."""
    imports, calls, at, column = [], [], 0, 0
    for i, group in enumerate(groups):
        function = group.step.py_func
        imports.append(f"from {function.__module__} import {function.__name__} as step_{i}")
        size, width = len(group.initial), len(group.columns)
        first = 0 if group.combines else column
        calls.append(f"    step_{i}(state[{at}:{at + size}], bar, book, context, out[{first}:{column + width}])")
        at, column = at + size, column + width
    return "\n".join(
        [
            f'"""Generated: the steps of the fold `{name}` in turn."""',
            "import numpy as np",
            "from pipelines.compiled import kernel",
            *imports,
            "",
            "@kernel",
            "def step(state, bar, book, context, out):",
            *calls,
            f"    for i in range({column}):",
            "        if not abs(out[i]) < np.inf:",  # also gives every NaN the same bits, from any operation
            "            out[i] = np.nan",
            "",
            "@kernel",
            "def run(state, bars, books, contexts, out):",
            "    for i in range(bars.shape[0]):",
            "        step(state, bars[i], books[i], contexts[i], out[i])",
            "",
        ]
    )


def _sources(step: Any, seen: frozenset[Any] = frozenset()) -> Iterator[Path]:
    """Yield the files of a kernel and of every kernel it calls."""
    function = step.py_func
    yield Path(function.__code__.co_filename)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if isinstance(called, Kernel) and called not in seen:
            yield from _sources(called, seen | {step})


def _code(path: Path) -> str:
    """Return a file's source without comments, layout and docstrings: the part that can change a number."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
