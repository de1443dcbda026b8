"""What a trade returns that misses its target: by hand, and on the recorded year that showed the fault."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts import CLOSE, OPEN_TIME
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import TIME, UNRESOLVED, triple_barrier
from pipelines.labels.misses import miss_atr
from pipelines.labels.weights import average_uniqueness
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS = load_params()
RECORDED = Path(__file__).parents[2] / "../shared/data/candles/binance_spot_btcusdt_1m_2024.parquet"


def test_it_is_the_mean_over_the_missed_events_in_atr_weighted_as_evidence():
    label = np.array([1.0, 0.0, 0.0, np.nan, 0.0])
    gross_bps = np.array([60.0, -40.0, 10.0, -900.0, np.nan])
    atr = np.array([0.004, 0.004, 0.002, 0.004, 0.004])
    assert miss_atr(label, gross_bps, atr, np.ones(5)) == pytest.approx((-1.0 + 0.5) / 2)
    assert miss_atr(label, gross_bps, atr, np.array([1.0, 1.0, 0.25, 1.0, 1.0])) == pytest.approx((-1.0 + 0.125) / 1.25)


def test_without_a_miss_there_is_no_estimate():
    assert miss_atr(np.ones(3), np.full(3, 60.0), np.full(3, 0.004), np.ones(3)) is None


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recorded year next to this checkout")
def test_on_the_recorded_year_a_timeout_was_no_full_stop_and_the_edge_is_no_longer_biased_by_it():
    from benchmarks.fixture import recorded

    labels, cost = PARAMS.labels, 5.0
    base = recorded(RECORDED)
    decision = resample(base, MINUTES, QUARTERS)
    features, signals = FEATURES.run(decision), SIGNALS.run(decision)
    raised = events(features, signals)
    known = QUARTERS.closes(decision[raised.index, OPEN_TIME])
    outcome = triple_barrier(
        base, known, decision[raised.index, CLOSE], raised.direction, raised.atr,
        labels.target_atr, labels.stop_atr, QUARTERS.deadline(known, labels.horizon_bars),
    )  # fmt: skip
    of = (outcome.barrier != UNRESOLVED) & (labels.target_atr * raised.atr * 1e4 >= 2.0 * cost)
    stop_bps, y, gross = raised.atr[of] * 1e4, outcome.label[of], outcome.gross_bps[of]
    ran_out = outcome.barrier[of] == TIME
    assert gross[ran_out].mean() == pytest.approx(11.2, abs=0.1)
    assert -stop_bps[ran_out].mean() == pytest.approx(-46.1, abs=0.1)

    def bias(missed):  # mean edge at the true outcome, less what was returned
        return float((y * 1.5 * stop_bps + (1.0 - y) * missed * stop_bps - gross).mean())

    uniqueness = average_uniqueness(outcome.start[of], outcome.exit[of], len(base))
    missed = miss_atr(y, gross, raised.atr[of], uniqueness)
    assert bias(-1.0) == pytest.approx(-2.5, abs=0.1)
    assert abs(bias(missed)) < 1.0
    width = stop_bps.mean()
    assert (cost + width) / (2.5 * width) == pytest.approx(0.455, abs=0.001)
    assert (cost - missed * width) / ((1.5 - missed) * width) < 0.440
