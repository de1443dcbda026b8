"""The sample-ratio test: a fair bet on a split as stated, safe at every look, and quick where the split is broken."""

import subprocess
import sys
from itertools import product
from math import comb, prod

import numpy as np
import pytest

from pipelines.errors import BadValues
from pipelines.experiments.sample_ratio import StageCount, sample_ratio

ALPHA = 0.001


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("units", [1, 2, 7, 40])
def test_its_expectation_is_one_where_the_split_is_as_stated(weight, units) -> None:
    chances = [comb(units, k) * weight**k * (1 - weight) ** (units - k) for k in range(units + 1)]
    values = [sample_ratio([StageCount(weight, units, k)]) for k in range(units + 1)]
    assert np.dot(chances, values) == pytest.approx(1.0, rel=1e-10)


@pytest.mark.parametrize("so_far", [(0, 0), (3, 1), (6, 6), (9, 0)])
def test_the_next_unit_is_a_fair_bet_whatever_came_before(so_far) -> None:
    units, hits = so_far
    other = StageCount(0.1, 20, 5)
    now = sample_ratio([other, StageCount(0.5, units, hits)])
    nexts = [sample_ratio([other, StageCount(0.5, units + 1, hits + hit)]) for hit in (1, 0)]
    assert np.mean(nexts) == pytest.approx(now, rel=1e-10)


def test_stages_are_betted_on_apart() -> None:
    stages = [StageCount(0.1, 20, 4), StageCount(0.5, 20, 4)]
    assert sample_ratio(stages) == pytest.approx(prod(sample_ratio([stage]) for stage in stages))
    two_units = product((0, 1), repeat=2)
    expected = sum(
        (0.1 if i else 0.9) * 0.5 * sample_ratio([StageCount(0.1, 1, i), StageCount(0.5, 1, j)]) for i, j in two_units
    )
    assert expected == pytest.approx(1.0)
    assert sample_ratio([]) == sample_ratio([StageCount(0.5, 0, 0)]) == 1.0


def looked_at(shares: np.ndarray, stated: np.ndarray, runs: int, seed: int) -> np.ndarray:
    """Return units after which each run was called broken, looked at after every unit; 0 = never."""
    falls = np.random.default_rng(seed).random((runs, len(shares))) < shares
    stages = np.unique(stated)
    firsts = []
    for run in falls:
        units, hits, first = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0), 0
        for at, (weight, hit) in enumerate(zip(stated, run, strict=True), start=1):
            units[weight], hits[weight] = units[weight] + 1, hits[weight] + int(hit)
            if sample_ratio([StageCount(w, units[w], hits[w]) for w in stages]) >= 1 / ALPHA:
                first = at
                break
        firsts.append(first)
    return np.array(firsts)


def test_looking_after_every_unit_is_safe_and_a_broken_split_is_found() -> None:
    stated = np.repeat([0.1, 0.5], 40)
    assert (looked_at(stated, stated, 2000, 0) > 0).mean() <= 0.003  # 2 expected at most; more than 6 is one in 200
    never = looked_at(0 * stated, stated, 1, 1)
    twice = looked_at(2 * stated, stated, 200, 2)
    assert 40 < never[0] <= 55
    assert (twice > 0).all()
    assert np.median(twice) <= 60


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(BadValues, match=r"weight is 1\.0"):
        sample_ratio([StageCount(1.0, 3, 3)])
    with pytest.raises(BadValues, match="4 of 3 units"):
        sample_ratio([StageCount(0.5, 3, 4)])
    assert sample_ratio([StageCount(0.5, 10**6, 0)]) > 1e300


@pytest.mark.parametrize("module", ["sample_ratio", "guardrails"])
def test_they_are_importable_without_scipy(module) -> None:
    code = (
        f"import sys, pipelines.experiments.{module}\n"
        "print({name.split('.')[0] for name in sys.modules} & {'scipy', 'pandas', 'numba', 'sklearn', 'sqlalchemy'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
