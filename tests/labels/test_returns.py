"""Returns over the next hour and the volatility known before them, against examples worked by hand."""

from datetime import date

import numpy as np
import pytest
from support.market_hours import at
from support.market_hours import bars as bars_of

from pipelines.contracts import BAR_WIDTH, HALF_SPREAD
from pipelines.data.calendars import CALENDARS
from pipelines.data.timeframes import Grid
from pipelines.labels.returns import HALF_LIVES, ewma_volatility, return_labels
from pipelines.settings import load_params

QUARTERS = Grid("15m")

PARAMS = load_params()


def bars(n=400, seed=1):
    rng = np.random.default_rng(seed)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0, 2e-3, n)))
    rows = np.full((n, BAR_WIDTH), 1.0)
    rows[:, HALF_SPREAD] = np.nan
    rows[:, 0] = QUARTERS.step_s * np.arange(n)
    rows[:, 1], rows[:, 4] = np.concatenate([[100.0], close[:-1]]), close
    rows[:, 2], rows[:, 3] = rows[:, [1, 4]].max(axis=1), rows[:, [1, 4]].min(axis=1)
    return rows


def labels(rows, grid=QUARTERS):
    return return_labels(rows, rows, grid, grid, PARAMS)


def test_the_label_is_the_log_return_of_the_next_hour_in_basis_points():
    rows = bars()
    labelled = labels(rows)
    i = labelled["index"][7]
    assert labelled["y"][7] == pytest.approx(1e4 * np.log(rows[i + 4, 4] / rows[i + 1, 1]))
    assert (labelled["known"][7], labelled["ended"][7]) == (rows[i, 0] + 900, rows[i, 0] + 900 + 3600)


def test_a_decision_bar_longer_than_the_hour_is_labelled_over_one_bar():
    rows = bars()
    rows[:, 0] *= 16
    labelled = labels(rows, Grid("4h"))
    i = labelled["index"][0]
    assert labelled["ended"][0] - labelled["known"][0] == 4 * 3600
    assert labelled["y"][0] == pytest.approx(1e4 * np.log(rows[i + 1, 4] / rows[i + 1, 1]))


def test_the_volatility_is_the_weighted_mean_square_of_the_returns_so_far():
    rows = bars()
    returns = np.diff(np.log(rows[:, 4]))
    at = HALF_LIVES.index(8.0)
    weights = 0.5 ** (np.arange(60)[::-1] / 8.0)
    assert ewma_volatility(rows, QUARTERS)[60, at] == pytest.approx(
        np.sqrt(weights @ returns[:60] ** 2 / weights.sum())
    )


def test_a_return_over_a_gap_is_no_volatility_and_an_hour_over_a_gap_no_label():
    rows = bars()
    rows[200:, 0] += 86400.0
    rows[200:, 1:5] *= 1.5
    labelled, volatility = labels(rows), ewma_volatility(rows, QUARTERS)
    assert volatility[200].tolist() == volatility[199].tolist()
    assert not set(labelled["index"]) & {196, 197, 198, 199}
    assert {195, 200} <= set(labelled["index"])
    assert np.abs(labelled["y"]).max() < 200


@pytest.mark.parametrize("at", [100, 250])
def test_nothing_after_the_hour_changes_a_label_and_nothing_after_the_close_its_volatility(at):
    rows = bars()
    garbage = rows.copy()
    garbage[at + 5 :, 1:5] = 1e6
    one, other = labels(rows), labels(garbage)
    i, j = np.searchsorted(one["index"], at), np.searchsorted(other["index"], at)
    assert one["y"][i] == other["y"][j]
    later = rows.copy()
    later[at + 1 :, 1:5] = 1e-3
    assert ewma_volatility(later, QUARTERS)[: at + 1].tobytes() == ewma_volatility(rows, QUARTERS)[: at + 1].tobytes()
    cut = labels(rows[: at + 5])
    assert cut["y"][-1] == one["y"][i]
    assert cut["ewma"][-1].tobytes() == one["ewma"][i].tobytes()


def test_a_return_over_a_weekend_is_one_bars_and_its_hour_is_the_next_that_trades():
    opens = bars_of("us-equity", 900.0, date(2024, 2, 26), date(2024, 3, 15))[:, 0]
    rows = bars(len(opens))
    rows[:, 0] = opens
    grid = Grid("15m", CALENDARS["us-equity"])
    returns = np.diff(np.log(rows[:, 4]))
    at_half_life = HALF_LIVES.index(8.0)
    weights = 0.5 ** (np.arange(200)[::-1] / 8.0)
    found = ewma_volatility(rows, grid)[200, at_half_life]  # no return is left out, over nights and a weekend
    assert found == pytest.approx(np.sqrt(weights @ returns[:200] ** 2 / weights.sum()))
    labelled = labels(rows, grid)
    friday = int(np.searchsorted(opens, at("2024-03-08 20:30")))  # two quarters before the close: two more on Monday
    (place,) = np.flatnonzero(labelled["index"] == friday - 1)
    assert labelled["ended"][place] == at("2024-03-11 14:00")  # 10:00 New York, after its clock has moved
    assert labelled["y"][place] == pytest.approx(1e4 * np.log(rows[friday + 3, 4] / rows[friday, 1]))
    assert len(labelled["index"]) > len(rows) - 30
