"""No column is computed without a reader or a reason; the reader it names reads it."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.columns import BLOCKS, UNREAD, UNREAD_INPUTS, association, holm, readers, undecided, unread_inputs
from pipelines.context_layout import NO_CONTEXT
from pipelines.contracts import BAR_WIDTH, History
from pipelines.features.catalog import FEATURES
from pipelines.models.views import VIEWS
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import event_rows, events, traditional_events
from pipelines.signals.regimes import market_state


def test_every_column_is_read_or_listed_with_its_reason():
    unread = {column for column, by in readers().items() if not by}
    assert unread == set(UNREAD), "read it, remove it, or list it in benchmarks/columns.py with the reason"
    assert all(UNREAD.values())


def test_every_recorded_input_is_needed_by_a_column_or_listed_with_its_reason():
    assert set(unread_inputs()) == set(UNREAD_INPUTS)
    assert all(UNREAD_INPUTS.values())


def test_a_new_column_that_no_one_reads_is_found(monkeypatch):
    monkeypatch.setattr(SIGNALS, "columns", (*SIGNALS.columns, "order_block.colour", "moon.phase"))
    unread = {column for column, by in readers().items() if not by}
    assert unread - set(UNREAD) == {"moon.phase"}  # a detail of a signal is drawn with its mark


N = 300  # bars


def drawn(column, rng):
    """Return (N,) values that a column may have."""
    if column.endswith(".direction"):
        return rng.choice([-1.0, 0.0, 1.0], N, p=[0.1, 0.8, 0.1])
    return rng.uniform(0.1, 0.9, N) * (50.0 if column == "adx_14" else 1.0)  # on both sides of the rule's edges


@pytest.fixture
def history():
    """Return N bars on which every feature and signal has some value: no reader lacks an input."""
    rng = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-3, N)))
    amounts = np.tile([5.0, 3.0, 2.0], (N, 1))
    bars = np.column_stack([900.0 * np.arange(N), close, close + 1, close - 1, close, amounts])
    bars = np.hstack([bars, np.full((N, BAR_WIDTH - bars.shape[1]), np.nan)])
    features, signals = (np.column_stack([drawn(name, rng) for name in fold.columns]) for fold in (FEATURES, SIGNALS))
    return History(bars, features, signals, np.empty((N, 2, 0, 3)), np.tile(NO_CONTEXT, (N, 1)))


def outputs(history, scores, raised):
    """Return reader → what it makes of the history; the validator's rows are those of the events `raised`."""
    features, signals, at = history.features, history.signals, np.arange(N - 20, N)
    found = events(features, signals)
    return {family: [view.build(history, at)] for family, view in VIEWS.items()} | {
        "validator": [event_rows(features, signals, raised)],
        "category scores": list(scores.score(signals)),
        "events": [found.index, found.direction, found.atr, traditional_events(features, signals).index],
        "regime by rule": list(market_state(features, signals)),
    }


def test_who_is_said_to_read_a_column_is_moved_by_it_and_no_one_else_is(history):
    scores, raised = CategoryScores.fit(history.signals), events(history.features, history.signals)
    usual, draws = outputs(history, scores, raised), np.random.default_rng(5)
    for name, by in readers().items():
        features, signals = history.features.copy(), history.signals.copy()
        values, at = (features, FEATURES.index[name]) if name in FEATURES.index else (signals, SIGNALS.index[name])
        values[:, at] = drawn(name, draws)
        changed = outputs(replace(history, features=features, signals=signals), scores, raised)
        moved = {
            reader
            for reader, arrays in usual.items()
            if any(a.tobytes() != b.tobytes() for a, b in zip(arrays, changed[reader], strict=True))
        }
        assert moved == set(by) & set(usual), name


def test_holm_adjusts_for_the_tests_that_were_made():
    adjusted = holm([0.01, 0.04, np.nan, 0.03])
    assert adjusted[:2] == pytest.approx([0.03, 0.06])
    assert np.isnan(adjusted[2])
    assert adjusted[3] == pytest.approx(0.06)


def test_an_association_is_found_where_it_is_and_holds_its_size_where_it_is_not():
    rng = np.random.default_rng(5)
    n, false = 2000, 0
    y = (rng.random(n) < 0.42).astype(float)
    assert association(y + rng.normal(0.0, 3.0, n), y)[1] < 1e-4
    for _ in range(400):
        noise = np.convolve(rng.normal(size=n + 15), np.ones(16), "valid")[:n]  # overlapping, as labels and columns are
        outcome = (np.convolve(rng.normal(size=n + 15), np.ones(16), "valid")[:n] > 0.5).astype(float)
        false += association(noise, outcome)[1] < 0.05
    assert false / 400 < 0.085  # 5 % nominal, three binomial errors
    assert np.isnan(association(np.full(n, np.nan), y)[1])
    assert np.isnan(association(np.ones(n), y)[1])
    assert np.isnan(association(np.r_[np.ones(10 * BLOCKS - 1), np.full(n - 10 * BLOCKS + 1, np.nan)], y)[1])


def test_what_no_decision_reads_is_what_only_the_chart_or_no_one_reads():
    assert set(UNREAD) < set(undecided())
    assert "institutional.vpin" in undecided()
    assert "volatility_20" not in undecided()
