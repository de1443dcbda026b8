"""The watch on the edge: a vanished edge is found, a kept one is left alone, at the stated rates."""

import numpy as np
import pytest

from benchmarks.power_watch import edge_of, outcomes
from pipelines.errors import BadShape
from pipelines.models.edge import Edge, paired_gains
from pipelines.models.losses import log_losses
from pipelines.monitoring.loss import harm, loss_alpha, loss_drift
from pipelines.settings import load_params

PARAMS = load_params()
GAIN, DAY_S = 0.018, 86_400.0


@pytest.fixture(scope="module")
def edge() -> Edge:
    return edge_of(PARAMS, GAIN)


def watched(edge: Edge | None, slope: float, days: int, seed: int):
    found = outcomes(PARAMS, GAIN, slope, days, seed)
    return loss_drift(found.at_s, found.p, found.y, edge, PARAMS, origin_s=0.0, until_s=days * DAY_S)


def test_a_prediction_counts_as_far_from_the_base_rate_as_stated_and_the_bound_holds(edge: Edge) -> None:
    p, y = np.array([0.001, 0.45, 0.999, 0.999, 0.001]), np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    gains = paired_gains(p, y, edge.base_rate, edge.log_odds)
    near = 1 / (1 + np.exp(-(np.log(edge.base_rate / (1 - edge.base_rate)) + edge.log_odds)))
    rate = np.full(1, edge.base_rate)
    assert gains[2] == pytest.approx((log_losses(rate, y[2:3]) - log_losses(np.array([near]), y[2:3]))[0])
    assert gains.max() == pytest.approx(edge.bound)
    assert gains.min() == pytest.approx(edge.lowest)


def test_an_edge_that_vanishes_is_found_within_a_season_and_a_kept_one_raises_nothing_in_a_year(edge: Edge) -> None:
    gone = [watched(edge, 0.0, 90, seed) for seed in range(30)]
    kept = [watched(edge, 1.0, 365, seed) for seed in range(30)]
    assert sum(bool(w.alarm) for w in gone) >= 26  # power.md: 98 % in 90 days
    assert not any(w.alarm for w in kept)
    assert "edge gone" in gone[0].reason


def test_half_an_edge_keeps_the_stated_rate_of_false_alarms(edge: Edge) -> None:
    half = [watched(edge, (1.0 + PARAMS.drift.edge_share) / 2.0, 365, seed) for seed in range(60)]
    assert sum(bool(w.alarm) for w in half) <= 12  # P(more) < 2 % at the budget of 11.7 %


def test_the_verdict_is_recomputed_from_stored_blocks_whatever_came_later(edge: Edge) -> None:
    found = outcomes(PARAMS, GAIN, 0.0, 120, 3)
    whole = loss_drift(found.at_s, found.p, found.y, edge, PARAMS, origin_s=0.0, until_s=120 * DAY_S)
    early = found.at_s < 60 * DAY_S
    first = loss_drift(
        found.at_s[early], found.p[early], found.y[early], edge, PARAMS, origin_s=0.0, until_s=60 * DAY_S
    )
    assert whole.blocks.mean[: len(first.blocks.mean)].tolist() == first.blocks.mean.tolist()
    assert whole.alarm_at_s is not None


def test_without_outcomes_or_an_edge_the_watch_abstains_with_its_reason(edge: Edge) -> None:
    none = np.empty(0)
    assert loss_drift(none, none, none, edge, PARAMS, origin_s=0.0, until_s=1.0).alarm is None
    assert "no gain" in watched(None, 1.0, 20, 1).reason
    nothing = Edge(0.45, -0.001, -0.002, 0.001, 200, 14_400.0, 0.3, 5)
    assert watched(nothing, 1.0, 20, 1).alarm is None
    with pytest.raises(BadShape):
        loss_drift(np.zeros(2), np.full(2, 0.5), np.zeros(1), edge, PARAMS, origin_s=0.0, until_s=1.0)


def test_the_risk_of_a_champion_spends_the_monthly_budget() -> None:
    months = PARAMS.retrain.interval_days / 30
    assert loss_alpha(PARAMS) == pytest.approx(PARAMS.drift.false_alarms_a_month.loss * months)


def test_an_alarm_is_called_harmful_harmless_or_not_yet_known(edge: Edge) -> None:
    gone, kept = watched(edge, 0.0, 200, 1), watched(edge, 1.2, 365, 1)
    assert harm(gone, edge, 0.0, PARAMS.drift).startswith("harmful:")
    assert harm(kept, edge, 0.0, PARAMS.drift).startswith("harmless:")
    assert harm(gone, edge, 197 * DAY_S, PARAMS.drift).startswith("not yet known:")
    assert harm(gone, edge, 300 * DAY_S, PARAMS.drift) == "not yet known: no whole block of outcomes since"
    assert harm(watched(None, 1.0, 20, 1), None, 0.0, PARAMS.drift).startswith("not yet known: its bundle states no")
