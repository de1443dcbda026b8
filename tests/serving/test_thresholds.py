"""S17 against the specification's numbers, cell by cell, and what the decision kernel makes of them."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.contracts import REGIMES
from pipelines.errors import UnknownName
from pipelines.params import ThresholdParams
from pipelines.settings import load_params
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import NOTHING_OPEN, flatten, to_rows
from serving.policy.fusion import N_SCORES
from serving.policy.thresholds import COLUMNS, THRESHOLDS, threshold_table, thresholds
from serving.risk.codes import (
    CONFIDENCE_BELOW,
    CONFLUENCE_BELOW,
    PHASE_DIFFERS,
    STRENGTH_BELOW,
    UNICORN_BELOW,
)

PARAMS = load_params()
STATED = PARAMS.thresholds
NAN = float("nan")
GOLDEN = {  # regime → strength, confidence, confluence, unicorn
    None: (70.0, 0.70, 0.60, 15.0),
    "TRENDING": (63.0, 0.665, 0.60, 15.0),
    "RANGING": (70.0, 0.70, 0.60, 15.0),
    "VOLATILE": (84.0, 0.77, 0.60, 16.5),
    "QUIET": (70.0, 0.70, 0.60, 15.0),
}


def values(regime, unicorn=None):
    minimum = thresholds(STATED, regime, unicorn)
    return minimum.min_strength, minimum.min_confidence, minimum.min_confluence, minimum.min_unicorn


@pytest.mark.parametrize("regime", GOLDEN)
@pytest.mark.parametrize("unicorn", [None, NAN, -21.0, 0.0, 15.0, 17.0])
def test_each_regime_has_the_thresholds_of_the_specification(regime, unicorn):
    assert values(regime, unicorn) == pytest.approx(GOLDEN[regime])
    assert thresholds(STATED, regime, unicorn).phase == "DISTRIBUTION"


@pytest.mark.parametrize("regime", GOLDEN)
@pytest.mark.parametrize("unicorn", [18.0, 21.0])
def test_a_high_unicorn_lowers_the_confidence_and_nothing_else(regime, unicorn):
    strength, confidence, confluence, stars = GOLDEN[regime]
    assert values(regime, unicorn) == pytest.approx((strength, 0.9 * confidence, confluence, stars))


def test_an_unknown_regime_is_refused_by_name():
    with pytest.raises(UnknownName, match="SIDEWAYS"):
        thresholds(STATED, "SIDEWAYS")


def test_the_version_moves_with_any_parameter_and_with_nothing_else():
    minimum = thresholds(STATED, None)
    assert minimum.version == thresholds(STATED, "VOLATILE", 20.0).version
    assert len(minimum.version) == 12
    for change in ({"high_unicorn": 17.0}, {"base": STATED.base.model_copy(update={"phase": "ACCUMULATION"})}):
        assert thresholds(STATED.model_copy(update=change), None).version != minimum.version


@pytest.mark.parametrize(("key", "factor"), [("min_strength", 1.5), ("min_confidence", 1.5), ("min_unicorn", 1.5)])
def test_a_factor_above_what_is_possible_is_refused(key, factor):
    with pytest.raises(ValidationError, match=f"QUIET needs {key}"):
        ThresholdParams.model_validate({**STATED.model_dump(), "regimes": {"QUIET": {key: factor}}})


def decided(regime, confidence, unicorn=NAN, event=1.0):
    """(whether it was too low, the minimum) for a row with every score at `confidence` on the event's side."""
    row = to_rows(
        np.full((1, N_SCORES), event), np.full((1, N_SCORES), confidence), trend=event, event=event, tier=1,
        regime=NAN if regime is None else REGIMES.index(regime), unicorn=unicorn, age_bars=0, breakers=0, embargoed=0,
        **NOTHING_OPEN, es_unit=0.02, volatility=0.003, atr=0.004, price=100.0, cost_bps=5.0, stop_cost_bps=5.0, p=0.7,
        p_low=0.65, miss_bps=-30.0,
    )[0]  # fmt: skip
    out = np.empty(decision_kernel.OUT_WIDTH)
    code = decision_kernel.decide_row(row, flatten(PARAMS), out)
    return bool(code & CONFIDENCE_BELOW), out[decision_kernel.MIN_CONFIDENCE]


@pytest.mark.parametrize("regime", GOLDEN)
@pytest.mark.parametrize(("event", "unicorn", "relief"), [
    (1.0, NAN, 1.0), (1.0, 17.0, 1.0), (1.0, 18.0, 0.9), (1.0, -18.0, 1.0), (-1.0, -18.0, 0.9), (-1.0, 21.0, 1.0),
])  # fmt: skip
def test_the_kernel_demands_the_confidence_of_the_regime(regime, event, unicorn, relief):
    least = GOLDEN[regime][1] * relief
    assert decided(regime, least + 1e-6, unicorn, event) == (False, pytest.approx(least))
    assert decided(regime, least - 1e-6, unicorn, event) == (True, pytest.approx(least))


def test_more_stars_than_there_are_cannot_be_decided_with():
    row = to_rows(np.ones((1, N_SCORES)), np.ones((1, N_SCORES)), unicorn=22.0)[0]
    out = np.empty(decision_kernel.OUT_WIDTH)
    decision_kernel.decide_row(row, flatten(PARAMS), out)
    assert int(out[decision_kernel.UNUSABLE_MASK]) >> decision_kernel.UNICORN & 1


def judged(require, regime=None, event=1.0, tier=1.0, own=0.9, unicorn=21.0, confluence=1.0, phase=3.0):
    """The refusals of thresholds for one event of `event` side; the values are those of its own side."""
    ict, tradition = (event, -event) if tier < 3 else (-event, event)
    direction = np.array([[event, ict, event, event, event, tradition]])
    confidence = np.array([[1.0, own if tier < 3 else 0.1, 1.0, 1.0, 1.0, 0.1 if tier < 3 else own]])
    row = to_rows(
        direction, confidence, trend=event, event=event, tier=tier, age_bars=0, breakers=0, embargoed=0,
        regime=NAN if regime is None else REGIMES.index(regime), unicorn=unicorn * event, confluence=confluence * event,
        phase=phase, **NOTHING_OPEN, es_unit=0.02, volatility=0.003, atr=0.004, price=100.0, cost_bps=5.0,
        stop_cost_bps=5.0, p=0.7, p_low=0.65, miss_bps=-30.0,
    )[0]  # fmt: skip
    out = np.empty(decision_kernel.OUT_WIDTH)
    flat = flatten(PARAMS.model_copy(update={"thresholds": STATED.model_copy(update={"require": require})}))
    of_thresholds = CONFIDENCE_BELOW | STRENGTH_BELOW | CONFLUENCE_BELOW | UNICORN_BELOW | PHASE_DIFFERS
    return decision_kernel.decide_row(row, flat, out) & of_thresholds


@pytest.mark.parametrize("event", [1.0, -1.0])
@pytest.mark.parametrize("regime", GOLDEN)
@pytest.mark.parametrize(("name", "field", "column", "unit", "bit"), [
    ("strength", "own", 0, 0.01, STRENGTH_BELOW), ("confluence", "confluence", 2, 1.0, CONFLUENCE_BELOW),
    ("unicorn", "unicorn", 3, 1.0, UNICORN_BELOW),
])  # fmt: skip
def test_each_threshold_refuses_under_the_value_of_its_regime_where_it_is_required_and_only_there(
    name, field, column, unit, bit, regime, event
):
    least = GOLDEN[regime][column] * unit
    for value, refused in ((least + 1e-6, 0), (least - 1e-6, bit), (-1.0 if field != "own" else 0.0, bit), (NAN, bit)):
        if field == "own" and np.isnan(value):
            continue  # a category with a side and no confidence cannot be computed with
        assert judged((name,), regime, event, **{field: value}) == refused
        assert judged((), regime, event, **{field: value}) == 0


def test_the_strength_is_that_of_the_category_which_raised_the_event():
    assert judged(("strength",), own=0.71, tier=1.0) == 0
    assert judged(("strength",), own=0.69, tier=2.0) == STRENGTH_BELOW
    assert judged(("strength",), own=0.71, tier=3.0) == 0
    assert judged(("strength",), own=0.69, tier=3.0) == STRENGTH_BELOW


@pytest.mark.parametrize(("phase", "refused"), [(0.0, True), (1.0, True), (2.0, True), (3.0, False), (NAN, True)])
def test_the_phase_has_to_be_the_one_that_is_named(phase, refused):
    assert bool(judged(("phase",), phase=phase) & PHASE_DIFFERS) == refused
    assert judged((), phase=phase) == 0


def test_a_threshold_that_does_not_exist_cannot_be_required():
    with pytest.raises(ValidationError, match="require"):
        ThresholdParams.model_validate({**STATED.model_dump(), "require": ["strength", "mood"]})
    assert set(ThresholdParams.model_validate({**STATED.model_dump(), "require": THRESHOLDS}).require) == set(
        THRESHOLDS
    )


def test_the_table_of_the_core_has_a_row_a_regime_and_one_for_none():
    table = threshold_table(STATED)
    assert table.shape == (len(REGIMES) + 1, len(COLUMNS))
    assert table[-1].tolist() == pytest.approx([0.70, 0.63, 70.0, 0.6, 15.0])
    other = STATED.model_copy(update={"base": STATED.base.model_copy(update={"min_confidence": 0.5})})
    assert (threshold_table(other)[:, :2] < table[:, :2]).all()
    assert replace(thresholds(other, None), version="") != replace(thresholds(STATED, None), version="")
