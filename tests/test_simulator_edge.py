"""The default edge of the simulator is the largest that leaves honest models below a suspected leak."""

import numpy as np
import pytest

from benchmarks.simulator_edge import MOST_AUC, PAGE, Rows, filtered_pressure, over_years, ranked, rankings, read_page
from pipelines.data.simulator.latent import DESIGN, decay_factor
from pipelines.settings import load_params

EDGE = load_params().simulator.edge


def test_the_default_edge_is_the_largest_measured_one_that_models_rank_below_the_limit():
    found = read_page(PAGE.read_text())
    for family in ("validator", "predictor"):
        assert found[family][EDGE] <= MOST_AUC, f"simulator.edge {EDGE} was not measured, or is too strong"
    larger = min(edge for edge in found["validator"] if edge > EDGE)
    assert larger <= EDGE + 0.1 + 1e-9
    assert found["validator"][larger] > MOST_AUC


def test_the_filtered_pressure_is_as_near_the_true_one_as_the_law_allows():
    rng = np.random.default_rng(3)
    keep, lean, noise = decay_factor(DESIGN.pressure_half_life_min), DESIGN.share_lean, DESIGN.share_noise
    n = 60_000
    u, steps = np.zeros(n + 1), rng.normal(0.0, np.sqrt(1.0 - keep * keep), n)
    for i in range(n):
        u[i + 1] = keep * u[i] + steps[i]
    flow, out = lean * u[:-1] + rng.normal(0.0, noise, n), np.empty(n)
    flow[5::7] = np.nan  # minutes without a trade
    filtered_pressure(flow, keep, lean, noise, out)
    error = (u[1:] - out)[1000:]
    # the variance at which the Riccati equation of this law rests, six of seven minutes seen
    v = 1.0
    for i in range(5000):
        seen = v * (1.0 - lean * lean * v / (lean * lean * v + noise * noise)) if i % 7 != 5 else v
        v = keep * keep * seen + 1.0 - keep * keep
    assert error.var() == pytest.approx(v, rel=0.05)
    assert abs(np.corrcoef(error, out[1000:])[0, 1]) < 0.05  # what is left cannot be had from the estimate


def made(n, strength, rng):
    """Return a year whose outcome follows a hidden score; the columns see it through noise."""
    hidden = rng.normal(size=n)
    y = (rng.random(n) < 1.0 / (1.0 + np.exp(-strength * hidden))).astype(float)
    seen = hidden + rng.normal(size=n)
    return Rows(
        y, hidden, hidden + 0.5 * rng.normal(size=n), hidden[:, None], np.column_stack([seen, rng.normal(size=n)])
    )


def test_the_rankings_order_what_is_known_and_find_nothing_where_nothing_is_planted():
    rng = np.random.default_rng(7)
    planted = rankings([made(1500, 0.9, rng) for _ in range(4)])
    assert planted["truth"].value > planted["filter"].value > planted["columns"].value > 0.55
    assert planted["truth, fitted"].value == pytest.approx(planted["truth"].value, abs=0.03)
    nothing = rankings([made(1500, 0.0, rng) for _ in range(4)])
    assert all(abs(figure.value - 0.5) < 0.03 for figure in nothing.values())


def test_years_give_a_t_interval_and_scores_of_any_size_an_auc():
    found = over_years([0.5, 0.6, 0.7])
    assert (found.value, found.n) == (pytest.approx(0.6), 3)
    assert found.high - found.value == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    assert ranked(np.array([-1e9, 0.0, 5.0, 7e12]), np.array([0.0, 0.0, 1.0, 1.0])) == 1.0
