"""The kernels of one turn give the same numbers compiled and as plain Python, within 1e-12, on any CPU."""

import ast
from contextlib import nullcontext

import numpy as np
import pytest
from support.context_factory import make_context
from support.market_bars import random_walk
from support.plain_python import plain_python

from benchmarks.decision_core import sample_rows
from pipelines import compiled
from pipelines.contracts import BOOK_LEVELS, CLOSE
from pipelines.data.orderbook.limit_order_book import LOG_WIDTH
from pipelines.data.simulator.latent import DESIGN
from pipelines.data.simulator.market_path import MarketPath
from pipelines.features.catalog import FEATURES
from pipelines.models import compiled_trees as compiled_trees_module
from pipelines.models.calibration_and_novelty import Calibration, Novelty, combine, stacked
from pipelines.models.compiled_trees import compiled_trees
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import flatten

BARS = 300
SPEC = load_params().simulator.model_copy(
    update={"history_days": 1, "live_days": 0, "drift_after_live_days": None, "book_every_minutes": 5}
)


def both(compute):
    """Return the arrays of `compute()` compiled and as plain Python."""
    results = []
    for mode in (nullcontext(), plain_python()):
        with mode:
            results.append(compute())
    return results


def assert_same(compute):
    for fast, plain in zip(*both(compute), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def market():
    """Bars with the books and context known at their closes."""
    bars, rng = random_walk(BARS), np.random.default_rng(5)
    away = np.cumsum(rng.uniform(0.1, 1.0, (BARS, 2, BOOK_LEVELS)), axis=2) * np.array([[-1.0], [1.0]])
    books = np.stack([bars[:, CLOSE, None, None] + away, *rng.uniform(0.1, 9.0, (2, BARS, 2, BOOK_LEVELS))], axis=3)
    return bars, books, make_context(bars)


@pytest.mark.parametrize("fold", [FEATURES, SIGNALS], ids=lambda fold: fold.name)
def test_folds_give_the_same_rows_and_state(fold, market):
    def run():
        state = fold.fresh()
        return fold.run(*market, state), state

    assert_same(run)


def test_category_scores_are_the_same(market):
    signals = SIGNALS.run(*market)
    assert_same(lambda: CategoryScores.fit(signals).score(signals))


def test_trees_are_the_same(monkeypatch):
    arrays = {
        "feature": np.array([0, 3, -1, -1, 1, -1, -1], np.int32), "roots": np.zeros(1, np.int32),
        "threshold": np.array([0.1, -0.2, 0, 0, 0.3, 0, 0], np.float32), "columns": np.array(2),
        "value": np.array([0, 0, 0.3, -0.2, 0, 0.7, 0.4], np.float32), "base": np.float32(0.2),
        "link": np.array("logistic"),
    }  # fmt: skip
    mirror = {"even": np.array([0]), "odd": np.array([0]), "centres": np.ones(1, np.float32), "sides": np.array([1])}
    rows = np.random.default_rng(3).normal(size=(2, 2))
    for read in (arrays, arrays | mirror):
        trees = compiled_trees(read, 2)
        for from_rows in (len(rows) + 1, 0):
            monkeypatch.setattr(compiled_trees_module, "QUICK_SCORER_FROM", from_rows)
            assert_same(lambda trees=trees: [trees.probabilities(rows)])


def test_calibration_and_novelty_are_the_same():
    rng = np.random.default_rng(4)
    raw, absent, lines = rng.random((2, 9, 3)), rng.random((9, 3)) < 0.3, [Calibration(1.1, 0.2, np.eye(2) / 9)] * 3
    raw[:, 0], raw[1, 1], absent[2] = np.nan, np.nan, True
    novelty, rows = Novelty(np.zeros(4), np.eye(4) + 0.1, 2.0), rng.normal(size=(9, 4))
    rows[3, 1], rows[4, 2] = np.nan, np.inf

    def run():
        members, p, low = np.empty_like(raw), np.empty((9, 3)), np.empty((9, 3))
        without = combine(raw, np.array([stacked(lines)] * 2), np.ones(2), absent, members, p, low)
        return members, p, low, np.array(without), novelty.distance(rows)

    assert_same(run)


def test_minutes_of_the_simulator_are_the_same():
    def trade():
        path = MarketPath(SPEC, DESIGN)
        # plain Python reads the fields of a record as attributes only from numpy's own record type
        for name in ("market", "tape", "book_knobs"):
            records = getattr(path, name)
            setattr(path, name, records.view((np.record, records.dtype)) if "plain" in mode else records)
        drawn, out = path.latent(12), path.allocate(12)
        path.trade(drawn, np.empty((0, LOG_WIDTH), np.int64), out)
        return drawn.path, drawn.latent, out.bars, out.events, out.levels[:2], out.flows[:2], out.tape[:2, 2:]

    mode = "compiled"
    fast = trade()
    with plain_python():
        mode = "plain"
        plain = trade()
    for one, other in zip(fast, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_decisions_are_the_same():
    rows, params = sample_rows(300), flatten(load_params())

    def decide():
        outs, codes = np.empty((len(rows), decision_kernel.OUT_WIDTH)), np.empty(len(rows), np.int64)
        decision_kernel.decide_rows(rows, params, outs, codes)
        return outs, codes

    assert_same(decide)


ROUNDED = {"exp", "log", "log2", "log10", "log1p", "expm1", "sin", "cos", "tan", "tanh", "power"}


def test_no_kernel_calls_a_numpy_function_whose_rounding_depends_on_the_cpu():
    found = []
    for source in compiled.kernel_sources():
        for node in ast.parse(source.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).startswith("kernel") for d in node.decorator_list
            ):
                names = {
                    n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "np"
                }
                found += [f"{source.name}: {node.name} calls np.{name}" for name in sorted(names & ROUNDED)]
    assert not found
