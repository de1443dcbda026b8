"""Assignment of units to arms: shares as stated, one arm a block, recomputable, and no way back within a ramp."""

import numpy as np
import pytest

from pipelines.errors import BadValues
from pipelines.experiments.assignment import Assigned, Assignment, Stage, read_assigned, read_assignment

KEY = "5a" * 32
BITS = "001010000100101101110101"  # computed once with hmac and sha256 by hand
SYMBOLS = [f"S{i}/USDT" for i in range(200)]
RAMP = (Stage(10, 0.1), Stage(20, 0.5))


def assignment(stages=RAMP, experiment=3, key=KEY):
    return Assignment(experiment, key, 1000.0, 86_400.0, "a" * 64, "b" * 64, stages=stages)


@pytest.mark.parametrize("weight", [0.05, 0.1, 0.5, 0.9])
def test_a_share_of_the_units_as_stated_falls_to_the_challenger_by_symbol_and_by_block(weight):
    found = assignment((Stage(0, weight),))
    arms = np.array([[found.arm(symbol, block) == "challenger" for block in range(200)] for symbol in SYMBOLS])
    assert abs(arms.mean() - weight) < 4 * np.sqrt(weight * (1 - weight) / arms.size)
    for axis in (0, 1):  # no symbol and no block has another share than chance gives it
        spread = arms.mean(axis=axis).std()
        assert spread == pytest.approx(np.sqrt(weight * (1 - weight) / 200), rel=0.2)


def test_two_experiments_and_two_keys_are_assigned_independently():
    first = assignment((Stage(0, 0.5),))
    for other in (assignment((Stage(0, 0.5),), experiment=4), assignment((Stage(0, 0.5),), key="5b" * 32)):
        same = np.mean([first.arm(s, b) == other.arm(s, b) for s in SYMBOLS for b in range(100)])
        assert abs(same - 0.5) < 4 * 0.5 / np.sqrt(20_000)


def test_a_larger_weight_gives_nobody_back_to_the_champion():
    small, large = assignment((Stage(0, 0.2),)), assignment((Stage(0, 0.6),))
    units = [(symbol, block) for symbol in SYMBOLS for block in range(20)]
    of_small = {unit for unit in units if small.arm(*unit) == "challenger"}
    assert of_small < {unit for unit in units if large.arm(*unit) == "challenger"}


def test_weights_are_in_force_from_the_block_of_their_stage_on():
    found = assignment()
    assert [found.weight(block) for block in (0, 9, 10, 19, 20, 99)] == [0.0, 0.0, 0.1, 0.1, 0.5, 0.5]
    assert all(found.arm(symbol, 9) == "champion" for symbol in SYMBOLS)
    assert [found.block(at_s) for at_s in (1000.0, 1000.0 + 86_399.9, 1000.0 + 86_400.0)] == [0, 0, 1]


def test_the_same_unit_has_the_same_arm_on_any_machine():
    found = assignment((Stage(0, 0.5),))
    assert "".join(str(int(found.arm("BTC/USDT", block) == "challenger")) for block in range(24)) == BITS


def test_it_is_read_as_it_was_written():
    found = assignment()
    assert read_assignment(found.to_dict()) == found
    assert read_assigned(str(Assigned(3, 17, "challenger"))) == Assigned(3, 17, "challenger")
    with pytest.raises(BadValues, match="names no arm"):
        read_assigned("experiment 3 block 17 somebody")


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"a" * 64: 0.9, "b" * 64: 0.2}, "sum to one"),
        ({"a" * 64: 1.2, "b" * 64: -0.2}, "sum to one"),
        ({"a" * 64: 1.0}, "those of the two arms"),
        ({"a" * 64: 0.5, "c" * 64: 0.5}, "those of the two arms"),
        ({"a" * 64: 0.95, "b" * 64: 0.05}, "must grow"),
    ],
)
def test_weights_that_are_none_are_refused(weights, why):
    content = assignment().to_dict()
    content["stages"][1]["weights"] = weights
    with pytest.raises(BadValues, match=why):
        read_assignment(content)
