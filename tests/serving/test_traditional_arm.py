"""The standing arm `traditional` decides what the service decides in tier 3, from the rows that the service stored."""

import asyncio
from contextlib import closing
from dataclasses import replace

import pytest
from support.decision_service import AT, as_json
from support.serving_fixture import SYMBOL, publish

from benchmarks.fixture import serve_arms
from flows.support import traditional_arm
from flows.support.installation import Installation
from pipelines.contracts import OPEN_TIME
from pipelines.data.timeframes import Grid, resample
from pipelines.settings import Settings, load_params
from pipelines.store import Store
from serving.service.decision_engine import DecisionEngine
from serving.service.schemas import ObserveRequest


@pytest.fixture
def lived(stand, tmp_path):
    """A home without a champion, whose service has decided in tier 3 at every close of the live bars."""
    where = Settings(home=tmp_path, write_key="test-key")
    serve_arms(where, {}, {SYMBOL: publish(stand, tmp_path)}, AT)

    async def live():
        engine = DecisionEngine(where, load_params(where.params_file))
        await engine.start()
        try:
            for at in range(0, len(stand.live) - 14, 15):
                observed = {"symbol": SYMBOL, "bars": [as_json(row) for row in stand.live[at : at + 15]]}
                await engine.intake.observe_all([ObserveRequest.model_validate(observed)])
                await engine.decider.decide([SYMBOL])
        finally:
            await engine.stop()

    asyncio.run(live())
    with closing(Store.open(where.store)) as store:
        yield Installation(where, load_params(), store)


def closed_bars(stand):
    """Return close → decision bar of the live bars."""
    grid = Grid("15m")
    bars = resample(stand.live, Grid("1m"), grid)
    return dict(zip(grid.closes(bars[:, OPEN_TIME]).tolist(), bars, strict=True))


def test_it_decides_what_the_service_decides_without_a_model(lived, stand):
    records, bars = lived.store.decisions(SYMBOL), closed_bars(stand)
    assert {record.decision.tier for record in records} == {3}
    compared = 0
    for record in records:
        again = traditional_arm._decide(lived, record, bars)
        for name in ("event", "direction", "p", "edge_bps", "entry", "stop", "take_profits", "expiry"):
            assert getattr(again, name) == getattr(record.decision, name), name
        compared += again.event is not None
    assert compared >= 1


def test_a_close_of_another_catalogue_is_left_out_and_one_without_a_bar(lived, stand):
    record = lived.store.decisions(SYMBOL)[-1]
    bars = closed_bars(stand)
    assert traditional_arm._decide(lived, record, {}) is None
    assert traditional_arm._decide(lived, replace(record, features=b""), bars) is None
    assert traditional_arm._decide(lived, record, bars) is not None
