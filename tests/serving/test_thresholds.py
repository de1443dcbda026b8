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
from serving.policy.thresholds import confidence_table, thresholds
from serving.risk.codes import CONFIDENCE_BELOW

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
        regime=NAN if regime is None else REGIMES.index(regime), unicorn=unicorn, age_bars=0, breakers=0,
        **NOTHING_OPEN, es_unit=0.02, volatility=0.003, atr=0.004, price=100.0, p=0.7, p_low=0.65,
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


def test_the_table_of_the_core_has_a_row_a_regime_and_one_for_none():
    table = confidence_table(STATED)
    assert table.shape == (len(REGIMES) + 1, 2)
    assert table[-1].tolist() == pytest.approx([0.70, 0.63])
    other = STATED.model_copy(update={"base": STATED.base.model_copy(update={"min_confidence": 0.5})})
    assert (confidence_table(other) < table).all()
    assert replace(thresholds(other, None), version="") != replace(thresholds(STATED, None), version="")
