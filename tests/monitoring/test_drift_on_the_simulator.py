"""The stated false-alarm budget and the planted drift, on the default simulated market."""

import numpy as np
import pytest

from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import DriftReference, fit_reference
from pipelines.monitoring.drift import alarm_rates, detect
from pipelines.settings import load_params

PARAMS = load_params()
BARS = Grid(PARAMS.data.decision_timeframe)
BAR_SECONDS = BARS.step_s
BARS_A_DAY = 86_400 // BAR_SECONDS
HISTORY_DAYS = 120  # of a year: forty blocks of three days; `make evidence` watches a hundred whole years
HISTORY = HISTORY_DAYS * BARS_A_DAY
RATES = alarm_rates(PARAMS.drift.false_alarms_a_month, PARAMS.drift.block_bars, BAR_SECONDS, 1)
AT = [FEATURES.index[name] for name in WATCHED_COLUMNS]
DRIFTED_SEEDS = (0, 1, 2, 3, PARAMS.simulator.seed)


def feature_rows(seed: int, live_days: int, drift_after: int | None) -> np.ndarray:
    spec = PARAMS.simulator.model_copy(
        update={
            "seed": seed,
            "history_days": HISTORY_DAYS,
            "live_days": live_days,
            "drift_after_live_days": drift_after,
        }
    )
    return FEATURES.run(resample(simulate(spec, tape=False).bars, Grid("1m"), BARS))[:, AT]


@pytest.fixture(scope="module")
def stationary() -> dict[int, tuple[DriftReference, np.ndarray]]:
    """Return per seed the reference of its history and the feature rows of the 14 days after it."""
    found = {}
    for seed in range(20):
        values = feature_rows(seed, 14, None)
        found[seed] = fit_reference(values[:HISTORY], WATCHED_COLUMNS, PARAMS.drift, PARAMS.seed), values[HISTORY:]
    return found


def test_stationary_days_raise_no_more_alarms_than_the_budget_allows(stationary) -> None:
    results = {seed: detect(reference, values, RATES) for seed, (reference, values) in stationary.items()}
    assert all(len(result.blocks) == 4 for result in results.values())
    alarms = {s: r.reason for s, r in results.items() if any(block.alarm for block in r.blocks)}
    assert len(alarms) <= 4, alarms  # 80 blocks at 0.02 each: five or more have a chance of 2 %
    assert not any(block.missing_alarm for result in results.values() for block in result.blocks)


@pytest.mark.parametrize("seed", DRIFTED_SEEDS)
def test_the_planted_drift_is_detected_after_its_date_and_by_volatility(stationary, seed: int) -> None:
    days, after = PARAMS.simulator.live_days, PARAMS.simulator.drift_after_live_days
    result = detect(stationary[seed][0], feature_rows(seed, days, after)[HISTORY:], RATES)
    assert result.alarm, result.reason
    first = next(block for block in result.blocks if block.alarm)
    assert first.start + first.n > after * BARS_A_DAY
    named = {name for block in result.blocks if block.alarm for name in block.persistent}
    assert {"atr_14", "range_20", "spread_proxy_20", "volatility_20"} & named
