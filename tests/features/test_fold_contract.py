"""One contract for every column of every catalogue: no tomorrow, restart anywhere, batch equals live. Bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_WIDTH
from pipelines.contracts import BAR_WIDTH
from pipelines.errors import BadShape, StateError
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import Column, StreamingFold
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.stars import BARS

FOLDS = {"features": FEATURES, "signals": SIGNALS}
ENTRIES = [pytest.param(fold, column, id=column.name) for fold in FOLDS.values() for column in fold.catalogue]
CUT = 1733
SPOILT = slice(1000, 1011)  # bars whose volume, book and context were not recorded
COMBINED = {column.name for family in SIGNALS.groups if family.combines for column in family.columns}
FIELDS = {f"context:{name}" for name in CONTEXT_FIELDS}
CHANGED_BY_VOLUME = ("consensus", "amt")  # counts a vote that needs taker volume; counts time where there is none
INPUTS = {  # ways of folding that withhold something, and what they still give
    "forex": {"book"} | FIELDS,
    "no_book": {"volume", "taker"} | FIELDS,
    "no_context": {"volume", "taker", "book"},
    "bars_alone": {"volume", "taker"},
}


def spoil(rows, columns=slice(None)):
    """Rows as a careless source gives them: some without what they should hold."""
    rows = rows.copy()
    rows[SPOILT, columns] = np.nan
    return rows


def met(needs, given):
    """Whether the inputs a column needs are among those given."""
    return any(set(way.split(" and ")) <= given for way in needs.split(" or "))


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
    at = int(np.random.default_rng(5).integers(100, 2400))
    spoilt, holed, unknown = spoil(bars, slice(5, BAR_WIDTH)), spoil(books), spoil(contexts)
    ways = {}
    for name, fold in FOLDS.items():
        ruined = (
            np.vstack([spoilt[:CUT], garbage((400, BAR_WIDTH))]),
            np.concatenate([holed[:CUT], garbage((400, 2, 5, 3))]),
            np.vstack([unknown[:CUT], garbage((400, CONTEXT_WIDTH))]),
        )
        before = fold.fresh()
        first = fold.run(spoilt[:at], holed[:at], unknown[:at], before)
        after = fold.load(fold.dump(before))
        live = fold.fresh()
        ways[name] = {
            "whole": fold.run(spoilt, holed, unknown),
            "clean": fold.run(bars, books, contexts),
            "no_book": fold.run(bars, None, contexts),
            "no_context": fold.run(bars, books),
            "bars_alone": fold.run(bars),
            "nothing_known": fold.run(bars, np.full_like(books, np.nan), np.full_like(contexts, np.nan)),
            "forex": fold.run(np.column_stack([bars[:, :5], np.full((len(bars), 4), np.nan)]), books, contexts),
            "cut": fold.run(spoilt[:CUT], holed[:CUT], unknown[:CUT]),
            "ruined": fold.run(*ruined)[:CUT],
            "restarted": np.vstack([first, fold.run(spoilt[at:], holed[at:], unknown[at:], after)]),
            "live": np.array([fold.step(live, *row) for row in zip(spoilt, holed, unknown, strict=True)]),
        }
    return ways


def column_of(runs, fold, way, name):
    return runs[fold.name][way][:, fold.index[name]]


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_is_the_same_bytes_however_it_is_folded(runs, fold, column):
    whole = column_of(runs, fold, "whole", column.name)
    for way in ("cut", "ruined", "restarted", "live"):
        other = column_of(runs, fold, way, column.name)
        assert whole[: len(other)].tobytes() == other.tobytes(), way


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_a_column_starts_on_the_bar_its_definition_says(runs, fold, column):
    there = np.flatnonzero(~np.isnan(column_of(runs, fold, "clean", column.name)))
    if column.formula == "none":
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
    for way, given in INPUTS.items():
        found = column_of(runs, fold, way, column.name)
        if column.needs is not None and not met(column.needs, given):
            assert np.isnan(found).all(), way
        elif column.name not in COMBINED and not (way == "forex" and column.name.startswith(CHANGED_BY_VOLUME)):
            assert found.tobytes() == clean.tobytes(), way


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_books_and_context_of_which_nothing_is_known_are_as_good_as_none(runs, fold):
    assert runs[fold.name]["nothing_known"].tobytes() == runs[fold.name]["bars_alone"].tobytes()


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_what_was_not_recorded_leaves_no_trace_once_it_has_left_the_window(runs, fold, column):
    whole = column_of(runs, fold, "whole", column.name)
    clean = column_of(runs, fold, "clean", column.name)
    assert whole[: SPOILT.start].tobytes() == clean[: SPOILT.start].tobytes()
    memory = int(fold.warmup.max()) + BARS if column.name in COMBINED else column.warmup  # of those it is made of
    after = SPOILT.stop + max(60, memory)
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
    live = np.array([fold.step(state, row[:BAR_WIDTH]) for row in wide])
    assert live.tobytes() == fold.run(bars[:50]).tobytes() == fold.run(wide[:, :BAR_WIDTH]).tobytes()


def test_state_of_another_catalogue_is_refused():
    with pytest.raises(StateError, match="`bellwether up` folds the history again"):
        FEATURES.load(SIGNALS.dump(SIGNALS.fresh()))
    with pytest.raises(StateError, match="cut short"):
        FEATURES.load(FEATURES.dump(FEATURES.fresh())[:-8])
    with pytest.raises(StateError, match="use fresh"):
        FEATURES.step(SIGNALS.fresh(), np.zeros(BAR_WIDTH))


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
    first, *rest = SIGNALS.groups
    other = replace(first, columns=(replace(first.columns[0], formula="another"), *first.columns[1:]))
    assert StreamingFold("signals", SIGNALS.groups).catalogue_hash == SIGNALS.catalogue_hash
    assert StreamingFold("signals", (other, *rest)).catalogue_hash != SIGNALS.catalogue_hash
    with pytest.raises(BadShape, match="twice"):
        StreamingFold("doubled", (first, first))


@pytest.mark.parametrize(("fold", "column"), ENTRIES)
def test_every_column_is_documented(fold: StreamingFold, column: Column):
    assert column.unit
    assert column.formula
    assert column.source
    assert column.low < column.high
    assert column.warmup >= 1
    assert column.needs is None or met(column.needs, {"volume", "taker", "book"} | FIELDS)
