"""Loss drift: Page-Hinkley and the degradation test on steady and on reversed models."""

import numpy as np
import pytest

from pipelines.contracts import Estimate
from pipelines.errors import BadShape, BadValues
from pipelines.evaluation.metrics import mean_estimate
from pipelines.models.losses import log_losses
from pipelines.monitoring.loss import loss_drift, page_hinkley
from pipelines.settings import load_params

PARAMS = load_params().drift


def scored(n: int, seed: int, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities with log-odds of sd 0.6 about 40 %, and outcomes; with `sign` -1 of the opposite sign."""
    rng = np.random.default_rng(seed)
    z = 0.6 * rng.standard_normal(n)
    p, truth = 1 / (1 + np.exp(0.4 - z)), 1 / (1 + np.exp(0.4 - sign * z))
    return p, (rng.random(n) < truth).astype(float)


def reference_loss(seed: int) -> Estimate:
    return mean_estimate(log_losses(*scored(2000, 1000 + seed)))


def test_page_hinkley_agrees_with_a_sum_worked_by_hand() -> None:
    found = page_hinkley(np.array([1.0, 1.0, 2.0, 4.0]), delta=0.5, threshold=2.0)
    # means 1, 1, 4/3, 2 -> increments -.5, -.5, 1/6, 1.5; sums -.5, -1, -5/6, 2/3; lowest -.5, -1, -1, -1
    assert found.statistic == pytest.approx([0.0, 0.0, 1 / 6, 5 / 3])
    assert found.alarm_at is None
    assert page_hinkley(np.array([1.0, 1.0, 2.0, 4.0]), delta=0.5, threshold=1.5).alarm_at == 3


def test_page_hinkley_finds_a_rise_after_its_start_and_none_on_a_fall() -> None:
    steady = np.tile([0.6, 0.7], 100)
    assert page_hinkley(steady, 0.02, 4.0).alarm_at is None
    assert page_hinkley(np.concatenate([steady, steady - 0.4]), 0.02, 4.0).alarm_at is None
    at = page_hinkley(np.concatenate([steady, steady + 0.4]), 0.02, 4.0).alarm_at
    assert at is not None
    assert 200 < at < 225


def test_a_reversed_model_alarms_and_a_steady_one_does_not() -> None:
    seeds = range(40)
    reversed_sign = [loss_drift(*scored(200, s, -1.0), reference_loss(s), PARAMS, 200, s).alarm for s in seeds]
    steady = [loss_drift(*scored(200, s), reference_loss(s), PARAMS, 200, s).alarm for s in seeds]
    assert sum(bool(a) for a in reversed_sign) >= 38
    assert sum(bool(a) for a in steady) <= 4  # one-sided 2.5 % by design: 4 or more of 40 has chance 1.8 %


def test_a_rise_that_the_mean_does_not_confirm_is_no_alarm() -> None:
    p, y = np.full(300, 0.4), np.r_[np.zeros(150), np.ones(150)]
    reference = Estimate(5.0, 4.9, 5.1, 1000)
    found = loss_drift(p, y, reference, PARAMS, 200, 7)
    assert found.rise_at is not None
    assert found.alarm is False
    assert "not confirmed" in found.reason


def test_too_few_outcomes_are_undecided_with_their_number() -> None:
    p, y = scored(PARAMS.min_outcomes - 1, 1, -1.0)
    found = loss_drift(p, y, reference_loss(1), PARAMS, 200, 7)
    assert found.alarm is None
    assert f"n={PARAMS.min_outcomes - 1}" in found.reason
    assert found.change.n == PARAMS.min_outcomes - 1
    assert loss_drift(p[:0], y[:0], reference_loss(1), PARAMS, 200, 7).alarm is None


def test_bad_probabilities_and_a_missing_reference_are_refused() -> None:
    p, y = scored(120, 1)
    with pytest.raises(BadShape, match="120 probabilities but 119"):
        loss_drift(p, y[1:], reference_loss(1), PARAMS, 200, 7)
    with pytest.raises(BadValues, match="evaluate the model first"):
        loss_drift(p, y, Estimate(float("nan"), 0.0, 0.0, 0), PARAMS, 200, 7)
    with pytest.raises(BadValues, match="1 of 2 losses"):
        page_hinkley(np.array([np.nan, 1.0]), 0.02, 4.0)
