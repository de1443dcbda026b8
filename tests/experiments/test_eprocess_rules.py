"""The test of an edge bets within a bound that is fixed beforehand, and needs numpy alone."""

import subprocess
import sys

import numpy as np

from benchmarks.power_watch import edge_of
from pipelines.monitoring.loss import loss_drift
from pipelines.settings import load_params

PARAMS = load_params()


def test_one_block_is_no_alarm_however_bad_it_was():
    """A room taken from the blocks themselves is as small as their own spread, and one block then wins everything."""
    edge = edge_of(PARAMS, 0.018)
    period = (edge.block_horizons + 1) * edge.horizon_s
    at_s = np.arange(0.0, edge.block_horizons * edge.horizon_s, 900.0)
    wrong = loss_drift(at_s, np.full(len(at_s), 0.99), np.zeros(len(at_s)), edge, PARAMS, origin_s=0.0, until_s=period)
    assert len(wrong.blocks.mean) == 1
    assert wrong.alarm is False
    # the largest bet is nine tenths of what the bound allows to lose, so one block multiplies the stake by this at most
    assert wrong.p > 1.0 / (1.0 + 0.9 * (wrong.least - edge.lowest) / (edge.bound - wrong.least))


def test_it_is_importable_where_only_numpy_is():
    code = (
        "import sys, pipelines.experiments.eprocess\n"
        "print({name.split('.')[0] for name in sys.modules} & {'scipy', 'pandas', 'numba', 'sklearn', 'sqlalchemy'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
