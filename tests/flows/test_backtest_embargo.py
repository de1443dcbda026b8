"""The backtest obeys the calendar of events and `signals.disabled` as the live decision does."""

import numpy as np

from flows.support.backtest import backtest_policy
from pipelines.data.embargo import Window, inside
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.features.catalog import FEATURES
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events
from serving.risk.codes import EMBARGO, SIGNAL_DISABLED

PARAMS = load_params()
MINUTES, QUARTERS = Grid("1m"), Grid("15m")


def test_nothing_is_opened_inside_a_window_or_by_a_disabled_signal_and_what_was_decided_before_it_stays():
    spec = PARAMS.simulator.model_copy(update={"history_days": 20, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    decision = resample(base, MINUTES, QUARTERS)
    features, signals = FEATURES.run(decision), SIGNALS.run(decision)
    raised = events(features, signals)
    at = raised.index[raised.index >= 700]
    sure = {"p": np.full(len(at), 0.95), "p_low": np.full(len(at), 0.9), "miss_atr": np.full(len(at), -0.9)}

    def run(*windows, params=PARAMS):
        return backtest_policy(
            base,
            decision,
            features,
            signals,
            at,
            **sure,
            grid=QUARTERS,
            base_grid=MINUTES,
            params=params,
            windows=windows,
        )

    closes = QUARTERS.closes(decision[at[0] :, 0])
    window = Window(float(closes[len(closes) // 2]), float(closes[len(closes) // 2 + 300]), "FOMC")
    shut = inside(closes, [window])
    whole, obeyed = run(), run(window)
    assert (whole.codes[shut] == 0).any()
    assert ((obeyed.codes & EMBARGO != 0) == shut).all()
    before = closes < window.since
    assert (obeyed.codes[before] == whole.codes[before]).all()

    disabled = PARAMS.signals.model_copy(update={"disabled": ("fvg", "sweep")})
    flagged = run(params=PARAMS.model_copy(update={"signals": disabled}))
    of_them = np.zeros(len(decision), dtype=bool)
    of_them[raised.index] = np.isin(raised.kind, disabled.disabled)
    assert (whole.codes[of_them[at[0] :]] == 0).any()
    assert ((flagged.codes & SIGNAL_DISABLED != 0) == of_them[at[0] :]).all()
