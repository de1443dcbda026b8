"""One contract for every column of every catalogue: no tomorrow, restart anywhere, batch equals live. Bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.errors import BadShape, StateError
from pipelines.features.catalog import AWAITED_COLUMNS, FEATURES
from pipelines.features.fold import AWAITS, Column, Fold
from pipelines.signals.catalog import SIGNALS

FOLDS = {"features": FEATURES, "signals": SIGNALS}
ENTRIES = [pytest.param(fold, column, id=column.name) for fold in FOLDS.values() for column in fold.catalogue]
CUT = 1733
SPOILT = slice(1000, 1011)  # bars whose volume was not recorded


def spoil(bars):
    """Bars as a careless source gives them: some without volume."""
    bars = bars.copy()
    bars[SPOILT, 5:] = np.nan
    return bars


def garbage(shape, seed=3):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1e6, shape)
    noise[rng.random(shape) < 0.2] = np.nan
    noise[rng.random(shape) < 0.05] = np.inf
    noise[rng.random(shape) < 0.05] = 0.0
    return noise


@pytest.fixture(scope="module")
def runs(bars, books, contexts):
    """Every way of folding the same spoilt history, per fold: values by the name of the way."""
    spoilt, at = spoil(bars), int(np.random.default_rng(5).integers(100, 2400))
    ways = {}
    for name, fold in FOLDS.items():
        ruined = (
            np.vstack([spoilt[:CUT], garbage((400, 8))]),
            np.concatenate([books[:CUT], garbage((400, 2, 5, 3))]),
            np.vstack([contexts[:CUT], garbage((400, 6))]),
        )
        before = fold.fresh()
        first = fold.run(spoilt[:at], books[:at], contexts[:at], before)
        after = fold.load(fold.dump(before))
        live = fold.fresh()
        ways[name] = {
            "whole": fold.run(spoilt, books, contexts),
            "clean": fold.run(bars, books, contexts),
            "no_book": fold.run(bars),
            "forex": fold.run(np.column_stack([bars[:, :5], np.full((len(bars), 3), np.nan)])),
            "cut": fold.run(spoilt[:CUT], books[:CUT], contexts[:CUT]),
            "ruined": fold.run(*ruined)[:CUT],
            "restarted": np.vstack([first, fold.run(spoilt[at:], books[at:], contexts[at:], after)]),
            "live": np.array([fold.step(live, *row) for row in zip(spoilt, books, contexts, strict=True)]),
        }
    return ways


def column_of(runs, fold, way, name):
    return runs[fold.name][way][:, fold.index[name]]


@pytest.mark.parametrize("way", ["cut", "ruined", "restarted", "live"])
@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_is_the_same_bytes_however_it_is_folded(runs, fold, column, way):
    other = column_of(runs, fold, way, column.name)
    whole = column_of(runs, fold, "whole", column.name)
    assert whole[: len(other)].tobytes() == other.tobytes()


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_starts_on_the_bar_its_definition_says(runs, fold, column):
    there = np.flatnonzero(~np.isnan(column_of(runs, fold, "clean", column.name)))
    if column.source.startswith(AWAITS) or column.formula == "none":
        assert len(there) == 0
    elif column.sparse:
        assert len(there) == 0 or there[0] >= column.warmup - 1
    else:
        assert there[0] == column.warmup - 1


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_stays_in_its_documented_range(runs, fold, column):
    values = column_of(runs, fold, "clean", column.name)
    values = values[~np.isnan(values)]
    assert np.isfinite(values).all()
    slack = 1e-12 * max(1.0, abs(column.low) if np.isfinite(column.low) else 1.0)
    assert ((values >= column.low - slack) & (values <= column.high + slack)).all()


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_is_missing_exactly_where_an_input_it_needs_is_missing(runs, fold, column):
    clean = column_of(runs, fold, "clean", column.name)
    forex = column_of(runs, fold, "forex", column.name)
    if column.needs is None:
        if not column.name.startswith("consensus"):  # hears a vote that needs taker volume
            assert forex.tobytes() == clean.tobytes()
    else:
        assert np.isnan(forex).all()
        no_book = column_of(runs, fold, "no_book", column.name)
        assert np.isnan(no_book).all() if column.needs == "book" else no_book.tobytes() == clean.tobytes()


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_gap_in_volume_leaves_no_trace_once_it_has_left_the_window(runs, fold, column):
    whole = column_of(runs, fold, "whole", column.name)
    clean = column_of(runs, fold, "clean", column.name)
    assert whole[: SPOILT.start].tobytes() == clean[: SPOILT.start].tobytes()
    after = SPOILT.stop + 60
    assert whole[after:].tobytes() == clean[after:].tobytes()


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_state_is_the_same_bytes_in_batch_and_live(fold, bars):
    batch, live = fold.fresh(), fold.fresh()
    fold.run(bars[:600], state=batch)
    for bar in bars[:600]:
        fold.step(live, bar)
    assert fold.dump(batch) == fold.dump(live)


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_a_read_only_or_strided_bar_gives_the_same_bytes(fold, bars):
    wide = np.asfortranarray(np.column_stack([bars[:50], bars[:50]]))
    wide.setflags(write=False)
    state = fold.fresh()
    live = np.array([fold.step(state, row[:8]) for row in wide])
    assert live.tobytes() == fold.run(bars[:50]).tobytes() == fold.run(wide[:, :8]).tobytes()


def test_state_of_another_catalogue_is_refused():
    with pytest.raises(StateError, match="Replay history"):
        FEATURES.load(SIGNALS.dump(SIGNALS.fresh()))
    with pytest.raises(StateError, match="cut short"):
        FEATURES.load(FEATURES.dump(FEATURES.fresh())[:-8])
    with pytest.raises(StateError, match="use fresh"):
        FEATURES.step(SIGNALS.fresh(), np.zeros(8))


def test_bars_books_and_contexts_of_a_wrong_shape_are_refused(bars):
    with pytest.raises(BadShape, match="taker_buy_volume"):
        FEATURES.run(bars[:, :5])
    with pytest.raises(BadShape, match="books"):
        FEATURES.run(bars, np.zeros((len(bars), 5, 3)))
    with pytest.raises(BadShape, match="reference_close"):
        FEATURES.run(bars, None, np.zeros((len(bars), 5)))
    with pytest.raises(BadShape, match="context"):
        FEATURES.step(FEATURES.fresh(), bars[0], context=np.zeros(5))
    with pytest.raises(BadShape, match="bar"):
        FEATURES.step(FEATURES.fresh(), bars[0, :5])


def test_the_catalogue_hash_moves_with_a_formula_and_stays_otherwise():
    first, *rest = SIGNALS.families
    other = replace(first, columns=(replace(first.columns[0], formula="another"), *first.columns[1:]))
    assert Fold("signals", SIGNALS.families).catalogue_hash == SIGNALS.catalogue_hash
    assert Fold("signals", (other, *rest)).catalogue_hash != SIGNALS.catalogue_hash
    with pytest.raises(BadShape, match="twice"):
        Fold("doubled", (first, first))


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_every_column_is_documented(fold: Fold, column: Column):
    assert column.unit
    assert column.formula
    assert column.source
    assert column.low < column.high
    assert column.warmup >= 1
    assert column.needs in (None, "volume", "taker", "book")
    assert column.source.startswith(AWAITS) == (column.name in AWAITED_COLUMNS)
