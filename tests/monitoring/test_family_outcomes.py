"""Outcomes of the families' own labels: what is resolved live is what the labels stage computes on the same bars."""

from dataclasses import replace

import numpy as np
import pytest
from support.labelled_market import (
    CLASSES,
    DIGESTS,
    LOSS_PARAMS,
    MINUTES,
    PARAMS,
    QUARTERS,
    SYMBOL,
    decided,
    market_with_a_gap,
)

from pipelines.contracts import OPEN_TIME, ModelAnswer, utc
from pipelines.data.timeframes import resample
from pipelines.families import FAMILIES
from pipelines.family_labels import LABELS, READ_BY, longest_horizon, settled, without_broken_rows
from pipelines.models.base import Dataset
from pipelines.models.catalog import MODEL_FAMILIES
from pipelines.monitoring.family_outcomes import family_outcomes, live_loss, settled_decisions
from pipelines.signals.setups import PATTERNS

FIRST = 1_500  # the first decision bar that was decided on: what is before it is history


@pytest.fixture(scope="module")
def market():
    """Return the sources of twenty-five simulated days."""
    return market_with_a_gap(25, gap=1_900)


@pytest.fixture(scope="module")
def stage(market):
    """Return family → its labels as the labels stage writes them."""
    made = {READ_BY.get(name, name): (name, label(market, PARAMS)) for name, label in LABELS.items()}
    return {family: without_broken_rows(labels, name, market)[0] for family, (name, labels) in made.items()}


@pytest.fixture(scope="module")
def records(market):
    """Return a decision on each of the newest bars."""
    rng = np.random.default_rng(3)
    return [decided(market, at, rng) for at in range(FIRST, len(market.decision))]


def end_of(market):
    """Return when the newest base bar closed, epoch seconds."""
    return MINUTES.next_close(market.base[-1, OPEN_TIME])


@pytest.fixture(scope="module")
def outcomes(market, records):
    """Return family → the outcomes of all decisions whose labels are final."""
    bare = replace(market, features=np.empty((0, 0)), signals=np.empty((0, 0)))  # rows come with the decisions
    ready = settled_decisions(records, bare, end_of(market), PARAMS)
    found = family_outcomes(ready, bare, PARAMS, LOSS_PARAMS.get)
    return {family: [one for one in found if one.family == family] for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outcome_resolved_live_is_the_label_of_the_labels_stage(market, stage, outcomes, family):
    labels, found = stage[family], outcomes[family]
    last = market.closes[-1] - longest_horizon(QUARTERS, PARAMS) * 900.0
    rows = np.flatnonzero((labels["known"] >= market.closes[FIRST]) & (labels["known"] <= last))
    assert len(rows) > 150
    assert [one.as_of.timestamp() for one in found] == labels["known"][rows].tolist()
    assert [one.resolved_at.timestamp() for one in found] == labels["ended"][rows].tolist()
    if family == "pattern":
        sides = labels["direction"][rows] != 0.0
        expected = [{c: y for c, y, there in zip(PATTERNS, row, side, strict=True) if there}
                    for row, side in zip(labels["y"][rows].tolist(), sides, strict=True)]  # fmt: skip
    else:
        expected = labels["y"][rows].tolist()
    assert [one.label for one in found] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_its_loss_is_that_of_the_family_on_the_rows_of_training(records, stage, outcomes, family):
    labels, found, chosen = stage[family], outcomes[family], MODEL_FAMILIES[family]
    rows = np.searchsorted(labels["known"], [one.as_of.timestamp() for one in found])
    by_id = {record.decision.id: record.decision.models[family]["champion"].p for record in records}
    answered = [by_id[one.decision_id] for one in found]
    y = labels["y"][rows]
    if family in CLASSES:
        p = np.array([list(each.values()) for each in answered])
        y = y[:, : len(CLASSES[family])] if family == "pattern" else y
    else:
        p = np.array(answered)
    extras = {"ewma": labels["ewma"][rows]} if family == "regime" else {}
    n = len(rows)
    data = Dataset(
        columns=(), inputs=lambda at: at, y=y, weight=np.ones(n), uniqueness=np.ones(n), known=labels["known"][rows],
        ended=labels["ended"][rows], at=np.arange(n), extras=extras,
    )  # fmt: skip
    expected = chosen.loss(p, data, LOSS_PARAMS[DIGESTS[family]])
    assert [one.losses for one in found] == [{DIGESTS[family]: loss} for loss in expected.tolist()]


def test_labels_resolved_run_by_run_are_those_of_one_run(market, records, outcomes):
    """Each run sees the bars up to then, and the decisions since the newest that was settled before."""
    found, through = [], 0
    for known in range(FIRST + 40, len(market.decision), 97):
        until = float(market.closes[known])
        base = market.base[MINUTES.closes(market.base[:, OPEN_TIME]) <= until]
        here = replace(market, base=base, decision=resample(base, MINUTES, QUARTERS))
        ready = settled_decisions(records[through:], here, until, PARAMS)
        found += family_outcomes(ready, here, PARAMS, LOSS_PARAMS.get)
        through += len(ready)
    assert through > 500
    for family in FAMILIES:
        mine = [one for one in found if one.family == family]
        assert mine == outcomes[family][: len(mine)]
        assert len(mine) > 100


def test_nothing_is_final_before_the_longest_horizon_has_ended():
    close = np.array([QUARTERS.next_close(0.0)])
    horizon = longest_horizon(QUARTERS, PARAMS) * 900.0
    assert settled(close, close[0] + horizon, QUARTERS, PARAMS).tolist() == [True]
    assert settled(close, close[0] + horizon - 60.0, QUARTERS, PARAMS).tolist() == [False]


def test_one_decision_a_close_counts_and_none_without_a_number(market):
    rng, at = np.random.default_rng(5), FIRST + 20
    silent = {"regime": {"champion": ModelAnswer("regime", digest=DIGESTS["regime"], reason="WARMING_UP")}}
    again = decided(market, at, rng, id="again", ingested_at=utc(market.closes[at] + 60.0))
    records = [again, decided(market, at, rng), decided(market, at + 1, rng, models=silent)]
    ready = settled_decisions(records, market, end_of(market), PARAMS)
    assert [r.decision.id for r in ready] == [f"d{at}", f"d{at + 1}"]
    assert {one.decision_id for one in family_outcomes(ready, market, PARAMS, LOSS_PARAMS.get)} == {f"d{at}"}


def test_rows_of_another_catalogue_of_columns_are_left_out(market):
    other = replace(decided(market, FIRST, np.random.default_rng(5)), features=b"\0" * 80)
    assert settled_decisions([other], market, end_of(market), PARAMS) == []
    assert family_outcomes([], market, PARAMS, LOSS_PARAMS.get) == []


def test_a_live_loss_pools_markets_by_blocks_of_time_and_says_how_many(outcomes):
    regime = outcomes["regime"]
    other = [replace(one, symbol="ETH/USDT", decision_id=f"e{one.decision_id}") for one in regime[:50]]
    start, digest = regime[0].as_of.timestamp(), DIGESTS["regime"]
    found = live_loss(
        [*regime, *other], "regime", "champion", "4", digest, origin_s=start, until_s=start + 7 * 86_400,
        horizon_s=3600.0, horizons=5,
    )  # fmt: skip
    assert found.outcomes == len(regime) + 50
    assert found.markets[SYMBOL][0] == len(regime)
    assert found.markets["ETH/USDT"] == (50, pytest.approx(np.mean([one.losses[digest] for one in other])))
    assert 15 <= found.blocks.n < 7 * 24 // 6  # after the gap the model had no window for a while
    assert found.blocks.low < found.blocks.value < found.blocks.high
    assert f"on {found.outcomes:,} outcomes" in found.describe()
    assert f"ETH/USDT {found.markets['ETH/USDT'][1]:.4f}, n = 50" in found.describe()
    nothing = live_loss([], "regime", "champion", "4", digest, origin_s=0.0, until_s=1.0, horizon_s=3600.0, horizons=5)
    assert nothing.describe() == "regime champion version 4: no outcome of its own label yet"
    assert nothing.to_dict()["loss"] is None
