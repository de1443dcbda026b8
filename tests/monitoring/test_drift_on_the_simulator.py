"""The planted drift on the simulated market: no alarm before it, and the first block it fills alarms by volatility.

How often a market without drift alarms is measured on whole years: parts `drift_*` of `make evidence`.
"""

import pytest

from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import fit_reference
from pipelines.monitoring.drift import alarm_rates, detect
from pipelines.settings import load_params

PARAMS = load_params()
BARS = Grid(PARAMS.data.decision_timeframe)
BAR_SECONDS = BARS.step_s
BARS_A_DAY = 86_400 // BAR_SECONDS
BLOCK_DAYS = PARAMS.drift.block_bars // BARS_A_DAY
HISTORY_DAYS = 120  # forty blocks, of which the reference learns how far quiet ones lie apart
BEFORE, DRIFTED = 2, 2  # blocks
VOLATILITY = {"atr_14", "range_20", "spread_proxy_20", "volatility_20"}


@pytest.mark.parametrize("seed", [1, PARAMS.simulator.seed])
def test_the_planted_drift_alarms_in_the_first_block_it_fills_by_volatility_and_nothing_does_before(seed: int) -> None:
    spec = PARAMS.simulator.model_copy(
        update={
            "seed": seed,
            "history_days": HISTORY_DAYS,
            "live_days": (BEFORE + DRIFTED) * BLOCK_DAYS,
            "drift_after_live_days": BEFORE * BLOCK_DAYS,
        }
    )
    rows = FEATURES.run(resample(simulate(spec, tape=False).bars, Grid("1m"), BARS))
    rows = rows[:, [FEATURES.index[name] for name in WATCHED_COLUMNS]]
    history = HISTORY_DAYS * BARS_A_DAY
    reference = fit_reference(rows[:history], WATCHED_COLUMNS, PARAMS.drift, PARAMS.seed)
    rates = alarm_rates(PARAMS.drift.false_alarms_a_month, PARAMS.drift.block_bars, BAR_SECONDS, 1)
    result = detect(reference, rows[history:], rates)
    assert [bool(block.alarm) for block in result.blocks[: BEFORE + 1]] == [False] * BEFORE + [True], result.reason
    assert len(result.blocks) == BEFORE + DRIFTED
    assert VOLATILITY & set(result.blocks[BEFORE].persistent)
    assert not any(block.missing_alarm for block in result.blocks)
