"""Requests of concurrent callers in one call of a model: each gets its own answer, and a fault is its owner's alone."""

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.serving_fixture import make_bundle

from pipelines.models.calibration_and_novelty import LIVE_ROWS
from pipelines.models.runtime import load_bundle
from serving.inference.caller_batches import CallerBatches

CLIENTS = 64
POISON = 1e30


class Counted:
    """A real model that notes how many rows each call has, and raises at a poisoned row."""

    def __init__(self, model):
        self.model, self.family, self.digest, self.calls = model, model.family, model.digest, []

    def predict(self, rows):
        self.calls.append(len(rows))
        if (rows == POISON).any():
            raise ValueError("poison")
        return self.model.predict(rows)


@pytest.fixture(scope="module")
def models(stand, tmp_path_factory):
    """One model through ONNX Runtime and one of compiled trees."""
    folder = tmp_path_factory.mktemp("bundles")
    digests = [make_bundle(folder, stand.columns, stand.rows, trees=trees, bias=0.1 + trees) for trees in (False, True)]
    return [load_bundle(folder / digest, digest) for digest in digests]


def ask(batches, requests):
    """The answers, or errors, of all requests (model, rows) at once."""

    async def ask_all():
        return await asyncio.gather(*(batches.predict(*one) for one in requests), return_exceptions=True)

    return asyncio.run(ask_all())


def same(one, other):
    assert one.p.tobytes() == other.p.tobytes()
    assert one.p_low.tobytes() == other.p_low.tobytes()
    assert one.novelty.tobytes() == other.novelty.tobytes()
    assert (one.status, one.reason, one.digest) == (other.status, other.reason, other.digest)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 9), min_size=CLIENTS, max_size=CLIENTS), seed=st.integers(0, 2**32 - 1))
def test_64_callers_each_get_the_bits_of_their_own_rows_alone_in_few_calls(models, stand, sizes, seed):
    rng, counted = np.random.default_rng(seed), [Counted(model) for model in models]
    requests = []
    for n in sizes:
        rows = stand.rows[rng.integers(0, len(stand.rows), n)] + rng.normal(scale=1e-3, size=(n, len(stand.columns)))
        rows[rng.random(rows.shape) < 0.01] = np.nan
        requests.append((counted[rng.integers(0, 2)], rows))
    for (model, rows), answer in zip(requests, ask(CallerBatches(), requests), strict=True):
        same(answer, model.model.predict(rows))
    calls = counted[0].calls + counted[1].calls
    assert len(calls) <= 6
    assert max(calls) <= LIVE_ROWS
    assert sum(calls) == sum(sizes)


def test_no_batch_has_more_rows_than_it_may_and_a_larger_request_goes_alone(models, stand):
    model = Counted(models[0])
    requests = [(model, stand.rows[:n]) for n in (3, 2, 1, 9, 1, 5)]
    for (_, rows), answer in zip(requests, ask(CallerBatches(most_rows=5), requests), strict=True):
        same(answer, models[0].predict(rows))
    assert model.calls == [5, 1, 9, 1, 5]


def test_a_request_that_the_model_cannot_answer_fails_alone(models, stand):
    model = Counted(models[1])
    bad = np.full_like(stand.rows[:2], POISON)
    first, fault, last = ask(CallerBatches(), [(model, stand.rows[:3]), (model, bad), (model, stand.rows[3:5])])
    assert str(fault) == "poison"
    same(first, models[1].predict(stand.rows[:3]))
    same(last, models[1].predict(stand.rows[3:5]))
    assert model.calls == [7, 3, 2, 2]


def test_a_caller_that_goes_away_is_left_out_and_the_others_are_answered(models, stand):
    model, batches = Counted(models[0]), CallerBatches()

    async def one_leaves():
        tasks = [asyncio.ensure_future(batches.predict(model, stand.rows[i : i + 1])) for i in range(3)]
        asyncio.get_running_loop().call_soon(tasks[1].cancel)  # their requests wait, and none is answered yet
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, gone, last = asyncio.run(one_leaves())
    assert isinstance(gone, asyncio.CancelledError)
    same(first, models[0].predict(stand.rows[:1]))
    same(last, models[0].predict(stand.rows[2:3]))
    assert model.calls == [2]
    assert asyncio.run(batches.predict(model, stand.rows[:1])).status == ["OK"]
