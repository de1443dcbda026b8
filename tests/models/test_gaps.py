"""A gap costs the windows it breaks, and no more."""

import numpy as np
import pytest

from pipelines.models.gaps import DECISIONS, READERS, TOLERATED, broken, memory, waits, windows


def gap(size, before=700, after=800, every=None):
    """Return bars missing before each bar: `size` once, or `size` every so many bars."""
    missing = np.zeros(before + after, dtype=np.int64)
    missing[before::every] = size if every else 0
    missing[before] = size
    return missing


def naive(missing, reader):
    """The rule in plain words, bar by bar."""
    steps, lengths = windows(reader)
    whole = []
    for i in range(len(missing)):
        whole.append(all(missing[max(i - n + 2, 0) : i + 1].sum() <= TOLERATED * n for n in lengths))
    return np.array([not all(whole[max(i - steps + 1, 0) : i + 1]) for i in range(len(missing))])


@pytest.mark.parametrize("reader", READERS)
def test_the_rule_is_that_of_its_plain_words(reader):
    rng = np.random.default_rng(1)
    missing = np.where(rng.random(900) < 0.01, rng.integers(1, 9, 900), 0)
    np.testing.assert_array_equal(broken(missing, reader), naive(missing, reader))


@pytest.mark.parametrize(
    ("size", "least", "most"), [(1, {DECISIONS: 10, "validator": 10, "pattern": 40, "predictor": 60, "regime": 128},
                                    {DECISIONS: 19, "validator": 19, "pattern": 52, "predictor": 80, "regime": 148}),
                                (26, {**dict.fromkeys(READERS, 280), "predictor": 118}, dict.fromkeys(READERS, 630))],
)  # fmt: skip
def test_one_missing_bar_costs_its_windows_and_a_long_gap_all_of_them(size, least, most):
    for reader in READERS:
        bars = int(broken(gap(size), reader).sum())
        assert least[reader] <= bars <= most[reader], (reader, bars)
        assert waits(gap(size)[:701][-memory() :])[reader] == bars


def test_many_single_holes_break_a_long_window_together():
    assert broken(gap(1, every=50), DECISIONS)[-50:].any()
    assert not broken(gap(1, every=50), DECISIONS)[-50:].all()  # 2 % are missing: only short windows at each hole
    assert broken(gap(1, every=10), DECISIONS)[-50:].all()


def test_without_a_gap_nothing_waits():
    assert not broken(np.zeros(50, dtype=np.int64), "regime").any()
    assert waits(np.zeros(memory(), dtype=np.int64)) == {}
