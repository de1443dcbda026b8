"""Many symbols in one service: batches equal single calls, and one symbol's fault is its own."""

import asyncio
import json
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from sqlalchemy.exc import OperationalError
from support.decision_service import AT, as_json, running_service
from support.serving_fixture import SYMBOL, another_stand, make_bundle, publish, slot_entry

from bellwether.operations.replay_decisions import replay_decisions
from benchmarks.fixture import serve_arms
from flows.support.installation import Installation
from pipelines.contracts import OPEN_TIME, Predictions
from pipelines.errors import BadShape, BadValues, StateError, UnknownName
from pipelines.models.calibration_and_novelty import LIVE_ROWS
from pipelines.models.runtime import load_bundle
from pipelines.record_codec import DecisionRecord, message_of, new_part, read_record, record_of
from pipelines.settings import Settings, load_params
from pipelines.store import Store, StoreFault
from pipelines.warm_start import read_warm_start
from serving.inference.generation import read_generation, write_generation
from serving.inference.model_client import ModelClient, run_inference
from serving.inference.predictions import THREADS_FROM, InferenceRequest, predict_each, predict_local
from serving.policy.decide import MARKET_COLUMNS
from serving.service.decision_engine import DecisionEngine
from serving.service.decision_memory import MAX_CACHED_DECISIONS, DecisionKey, DecisionMemory
from serving.service.schemas import (
    MAX_BATCH_RECORDS,
    MAX_OBSERVE_BODY,
    MAX_SYMBOLS,
    ObserveBatchRequest,
    ObserveRequest,
    PredictBatchRequest,
)
from serving.state.symbols import Symbol

SECOND, THIRD, UNSEEN = "SIMB/USDT", "SIMC/USDT", "SIMD/USDT"
NAMES = (SYMBOL, SECOND, THIRD, UNSEEN)


@pytest.fixture(scope="module")
def stands(stand, tmp_path_factory):
    """Symbol → its market: four markets that share their times."""
    folder = tmp_path_factory.mktemp("stands")
    others = {name: another_stand(stand, folder / name[:4], name, seed) for seed, name in enumerate(NAMES[1:], 11)}
    return {SYMBOL: stand} | others


def served_home(stands, home):
    """Settings of an installation that serves all four, with a champion that was trained on three of them."""
    where = Settings(home=home, write_key="test-key")
    (home / "bundles").mkdir(parents=True)
    stand = stands[SYMBOL]
    digests = [make_bundle(home / "bundles", stand.columns, stand.rows, bias, symbols=NAMES[:3]) for bias in (0.1, 0.9)]
    arms = {arm: slot_entry(str(i), digests[i]) for i, arm in enumerate(("champion", "challenger"))}
    serve_arms(where, {"validator": arms}, {name: publish(stands[name], home) for name in NAMES}, AT)
    return where


@asynccontextmanager
async def started(where):
    engine = DecisionEngine(where, load_params(where.params_file))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def polled_until(holds):
    """Wait until the engine's own polls have led to `holds`. They run one at a time, so no test calls one besides."""
    async with asyncio.timeout(30.0):
        while not holds():
            await asyncio.sleep(0.02)


def warm_start_alarms(where):
    """Return every alarm of a refused warm start, oldest first."""
    with closing(Store.open(where.store)) as store:
        return [alarm for alarm in store.alarms(open_only=False) if alarm.kind == "warm_start_refused"]


def observations(stands, first, last, names=NAMES):
    return [{"symbol": name, "bars": [as_json(row) for row in stands[name].live[first:last]]} for name in names]


def requests(stands, first, last, names=NAMES):
    return [ObserveRequest.model_validate(one) for one in observations(stands, first, last, names)]


def stored(where):
    with closing(Store.open(where.store)) as store:
        return {name: store.bars(name)[:, OPEN_TIME].tolist() for name in NAMES}, store.decisions()


def without_arrival(decision):
    return replace(decision, ingested_at=AT).to_dict()


# ---- batches equal single calls


def test_symbols_that_advance_in_turn_share_nothing_and_closed_bars_do_not_change(stands):
    together = [Symbol(read_warm_start(stand.stage)) for stand in stands.values()]
    alone = [Symbol(read_warm_start(stand.stage)) for stand in stands.values()]
    rng, at, kept = np.random.default_rng(3), [0, 0, 0, 0], []
    for _ in range(25):
        for k, symbol in enumerate(together):
            n = int(rng.integers(0, 40))  # some close nothing, some close two
            made = symbol.advance(stands[symbol.name].live[at[k] : at[k] + n])
            kept += [(bar, (bar.features.tobytes(), bar.signals.tobytes())) for bar in made]
            at[k] += n
    for symbol, n in zip(alone, at, strict=True):
        symbol.advance(stands[symbol.name].live[:n])
    for one, other in zip(together, alone, strict=True):
        assert one.history.features.tobytes() == other.history.features.tobytes()
        assert one.history.signals.tobytes() == other.history.signals.tobytes()
        assert one.last_open_time == other.last_open_time
    assert all((bar.features.tobytes(), bar.signals.tobytes()) == rows for bar, rows in kept)


def test_a_batch_decides_as_single_calls_do_and_one_call_of_a_model_answers_for_all(stands, tmp_path, monkeypatch):
    async def batched(where):
        made = []
        async with started(where) as engine:
            asked = count_calls(engine, monkeypatch)
            for close in range(12):
                await engine.intake.observe_all(requests(stands, 15 * close, 15 * close + 15))
                before = len(asked)
                made.append(await engine.decider.decide_all(NAMES))
                assert len(asked) - before <= 2  # one family in two arms
            assert max(asked) > 1  # several symbols raised events at one close
        return made

    async def singly(where):
        made = []
        async with started(where) as engine:
            for close in range(12):
                for request in requests(stands, 15 * close, 15 * close + 15):
                    await engine.intake.observe(request)
                made.append([(await engine.decider.decide([name]))[0] for name in NAMES])
        return made

    one, other = asyncio.run(batched(served_home(stands, tmp_path / "a"))), asyncio.run(
        singly(served_home(stands, tmp_path / "b"))
    )  # fmt: skip
    assert [[without_arrival(d) for d in close] for close in one] == [
        [without_arrival(d) for d in close] for close in other
    ]


def count_calls(engine, monkeypatch):
    """Return a list that grows by the number of rows of each call of a model."""
    asked, model_type = [], type(engine._slots.snapshot.slots["validator", "champion"].model)
    real = model_type.predict
    monkeypatch.setattr(model_type, "predict", lambda self, rows: asked.append(len(rows)) or real(self, rows))
    return asked


def test_a_row_that_a_model_fails_on_costs_no_other_row_its_answer(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")

    class Fragile:
        def __init__(self, model):
            self.model, self.classes = model, model.classes

        def predict(self, rows):
            if np.isnan(rows).any():
                raise BadShape("a row without a value")
            return self.model.predict(rows)

    async def run():
        async with started(where) as engine:
            return engine._slots.snapshot.slots["validator", "champion"].model

    model = asyncio.run(run())
    rows = stands[SYMBOL].rows[:3].copy()
    rows[1, 0] = np.nan
    first, second, third = predict_each(Fragile(model), rows, "validator champion")
    assert second.startswith("MODEL_FAULT:BadShape")
    assert [first.p, third.p] == [model.predict(rows[i : i + 1]).p.item() for i in (0, 2)]


def test_the_model_service_answers_a_batch_as_the_models_here_do_bit_for_bit(stands, tmp_path, monkeypatch):
    where = served_home(stands, tmp_path / "home")

    async def run():
        async with started(where) as engine:
            snapshot, asked = engine._slots.snapshot, []

            def answer(request):
                taken = PredictBatchRequest.model_validate_json(request.content)
                asked.append([one.rows.shape[0] for one in taken.inference_requests])
                return httpx.Response(200, json=run_inference(snapshot, taken))

            client = ModelClient("http://models", "key", timeout_s=5.0, retry_s=1.0, slow_in_row=3)
            client._client = httpx.AsyncClient(base_url="http://models", transport=httpx.MockTransport(answer))
            rows = stands[SYMBOL].rows
            requests = [
                InferenceRequest("validator", arms, rows[i : i + 1], stands[SYMBOL].columns, "x", 1)
                for i, arms in enumerate([("champion", "challenger")] * 5 + [("champion",)])
            ]
            remote, local = await client.predict(snapshot, requests), predict_local(snapshot, requests)
            assert asked == [[5, 1]]
            monkeypatch.setattr(type(snapshot.slots["validator", "champion"].model), "predict", fails_on_three_rows)
            fragile = await client.predict(snapshot, requests[:3])
            assert asked[1:] == [[3], [1, 1, 1]]
            await client.close()
            return remote, local, fragile

    remote, local, fragile = asyncio.run(run())
    for one, other in zip(remote, local, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert (one[key].p, one[key].p_low) == (other[key].p, other[key].p_low)
    assert [[answer.status for answer in found.values()] for found in fragile] == [["OK"] * 2] * 3


def test_the_models_of_a_large_batch_run_in_threads_and_answer_as_for_each_symbol_alone(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")

    async def served():
        async with started(where) as engine:
            return engine._slots.snapshot

    snapshot, stand, took = asyncio.run(served()), stands[SYMBOL], []
    requests = [
        InferenceRequest("validator", ("champion", "challenger"), stand.rows[i : i + 1], stand.columns, "x", 1)
        for i in range(THREADS_FROM)
    ]
    found = predict_local(snapshot, requests, lambda family, arm, ms: took.append((family, arm, ms > 0.0)))
    assert found == [predict_local(snapshot, [request])[0] for request in requests]
    assert took == [("validator", "champion", True), ("validator", "challenger", True)]


def test_a_rows_answer_does_not_depend_on_the_rows_beside_it(stands, tmp_path):
    stand = stands[SYMBOL]
    digest = make_bundle(tmp_path, stand.columns, stand.rows)  # a matrix product, which rounds by its number of rows
    model = load_bundle(tmp_path / digest, digest)
    rows = stand.rows[:64]
    for n in (2, 5, 16, 64):
        together = model.predict(rows[:n])
        assert together.p.tobytes() == b"".join(model.predict(rows[i : i + 1]).p.tobytes() for i in range(n))
    assert LIVE_ROWS == MAX_SYMBOLS


def fails_on_three_rows(self, rows):
    """Predict as a model that one of three rows breaks."""
    if len(rows) == 3:
        raise BadShape("three rows")
    one = np.full(len(rows), 0.5)
    return Predictions(one, one, ["OK"] * len(rows), [None] * len(rows), one, self.digest)


# ---- one symbol's fault is its own


def test_one_symbols_bad_data_refuses_that_symbol_only_in_its_place(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")
    sent = observations(stands, 0, 8)
    sent[1]["bars"][3]["high"] = 1.0  # under its low: impossible
    sent[2]["bars"][3]["high"] = "dear"  # no number at all
    sent += [{"symbol": "DOGE/USDT", "bars": sent[0]["bars"]}, sent[0], {"bars": []}, 7, {"symbol": "a\nb", "bars": []}]

    with running_service(stands[SYMBOL], where.home) as client:
        found = client.call("/observe", {"observations": sent}).json()["observations"]
        again = client.call("/observe", {"observations": observations(stands, 0, 8)}).json()["observations"]
        decided = client.call("/decide", {"symbols": [SYMBOL, "DOGE/USDT", UNSEEN], "view": "brief"}).json()
        too_many = client.call("/observe", {"observations": []})
        both = client.call("/observe", {"observations": sent, "symbol": SYMBOL})
        single = client.call("/observe", {"symbol": SYMBOL, "bars": [{"open": 1}]})
    assert [one.get("kind") for one in found] == [
        None, "BadValues", "BadRequest", None, "UnknownName", "BadValues", "BadRequest", "BadRequest",
        "BadRequest",
    ]  # fmt: skip
    assert (found[0]["new"], found[0]["symbol"]) == (8, SYMBOL)
    assert found[2]["fields"][0]["field"] == "bars.3.high"
    assert [found[i]["symbol"] for i in (2, 6, 7, 8)] == [THIRD, None, None, None]  # no control character is echoed
    assert "twice" in found[5]["error"]
    assert [one["new"] for one in again] == [0, 8, 8, 0]  # a retry changes nothing and stores what is right now
    assert [one.get("kind") for one in decided["decisions"]] == [None, "UnknownName", None]
    assert {too_many.status_code, both.status_code, single.status_code} == {400}
    assert single.json()["fields"][0]["field"] == "bars.0.open_time"  # as it always was
    bars, _ = stored(where)
    assert {len(times) for times in bars.values()} == {8}


def test_a_batch_that_the_store_refuses_for_one_symbol_stores_the_others(stands, tmp_path, monkeypatch):
    where, real = served_home(stands, tmp_path / "home"), Store.add_all_bars

    def refusing(self, batches, within=None):
        if SECOND in [batch.symbol for batch in batches]:
            raise BadValues("another bar is stored under that time")
        return real(self, batches, within)

    monkeypatch.setattr(Store, "add_all_bars", refusing)

    async def run():
        async with started(where) as engine:
            found = await engine.intake.observe_all(requests(stands, 0, 8))
            return found, {name: symbol.last_open_time for name, symbol in engine._symbols.items()}

    found, last = asyncio.run(run())
    assert [isinstance(one, BadValues) for one in found] == [False, True, False, False]
    assert {name: at == stands[name].live[7, OPEN_TIME] for name, at in last.items()} == {
        name: name != SECOND for name in NAMES
    }
    assert {name: len(times) for name, times in stored(where)[0].items()} == {
        name: 0 if name == SECOND else 8 for name in NAMES
    }


def test_what_several_symbols_send_is_one_transaction(stands, tmp_path, monkeypatch):
    where, real, transactions = served_home(stands, tmp_path / "home"), Store.add_all_bars, []

    def noting(self, batches, within=None):
        transactions.append([batch.symbol for batch in batches])
        return real(self, batches, within)

    monkeypatch.setattr(Store, "add_all_bars", noting)

    async def run():
        async with started(where) as engine:
            await engine.intake.observe_all(requests(stands, 0, 8))

    asyncio.run(run())
    assert transactions == [list(NAMES)]


def test_a_batch_has_a_limit_on_symbols_records_and_bytes(stands):
    bars = [as_json(row) for row in stands[SYMBOL].live[:1100]]
    many = {"observations": [{"symbol": f"S{i}X/USDT", "bars": bars} for i in range(MAX_BATCH_RECORDS // 1100 + 1)]}
    with pytest.raises(ValueError, match="at most 8,192 a batch"):
        ObserveBatchRequest.model_validate(many)
    fits = {"observations": many["observations"][:-1]}
    assert len(ObserveBatchRequest.model_validate(fits).observations) == MAX_BATCH_RECORDS // 1100
    assert len(json.dumps(fits)) < MAX_OBSERVE_BODY == 4 << 20


def test_a_model_is_asked_only_about_symbols_it_was_trained_on_and_the_others_say_so(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")

    async def run():
        async with started(where) as engine:
            await engine.intake.observe_all(requests(stands, 0, 15))
            return await engine.decider.decide_all(NAMES), engine.readiness.status()["symbols"]

    made, symbols = asyncio.run(run())
    reasons = {decision.symbol: decision.models["validator"]["champion"].reason for decision in made}
    assert reasons[UNSEEN] == f"UNSEEN_SYMBOL:{', '.join(NAMES[:3])}"
    assert all("UNSEEN_SYMBOL" not in (reasons[name] or "") for name in NAMES[:3])
    assert (symbols[UNSEEN]["tier"], symbols[SYMBOL]["tier"]) == (3, 2)


# ---- the universe


def test_a_refused_warm_start_refuses_its_symbol_alone_and_a_symbol_that_left_is_not_live(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")
    named = read_generation(where.serving_dir)["warm_starts"]
    damaged = Path(named[SECOND]["path"]) / "tail.npy"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + b"?")

    async def run():
        async with started(where) as engine:
            found = await engine.intake.observe_all(requests(stands, 0, 8))
            assert [type(one).__name__ for one in found] == ["dict", "StateError", "dict", "dict"]
            with pytest.raises(StateError, match=SECOND):
                await engine.decider.decide([SECOND])
            assert engine.store_monitor.fault is None  # the store is well: no other symbol falls to tier 4
            (check,) = [one for one in engine.readiness.checks() if one["name"] == "warm start"]
            assert (check["ok"], check["detail"].startswith(f"{SECOND}: warm start")) == (True, True)
            damaged.write_bytes(content)
            families = read_generation(where.serving_dir)["families"]
            kept = {name: entry for name, entry in named.items() if name != THIRD}
            write_generation(where.serving_dir, families, kept, AT)
            await polled_until(lambda: len(warm_start_alarms(where)) > 1)
            assert set(engine._symbols) == {SYMBOL, SECOND, UNSEEN}
            with pytest.raises(UnknownName, match=THIRD):
                await engine.decider.decide([THIRD])
            assert engine._symbols[SYMBOL].last_open_time == stands[SYMBOL].live[7, OPEN_TIME]

    asyncio.run(run())
    alarms = warm_start_alarms(where)
    assert [alarm.detail.partition(":")[0] for alarm in alarms] == [SECOND, SECOND]  # refused, and live again
    assert alarms[-1].detail == f"{SECOND}: it is live again"
    assert alarms[0].cleared_at is not None


# ---- lineage, replay, a restart in the middle


def test_a_restart_in_the_middle_loses_no_bar_and_doubles_no_decision(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")

    async def run(first, last):
        made = []
        async with started(where) as engine:
            for close in range(first, last):
                batch = requests(stands, 15 * close, 15 * close + 15)
                await engine.intake.observe_all(batch)
                retried = await engine.intake.observe_all(batch)
                assert [one["new"] for one in retried] == [0] * len(NAMES)
                made.append(await engine.decider.decide_all(NAMES))
                assert await engine.decider.decide_all(NAMES) == made[-1]
        return made

    before, after = asyncio.run(run(0, 3)), asyncio.run(run(2, 5))  # the third close comes again
    assert after[0] == before[-1]
    bars, decisions = stored(where)
    for name in NAMES:
        assert bars[name] == stands[name].live[: 15 * 5, OPEN_TIME].tolist()
    assert len(decisions) == 5 * len(NAMES)
    installation = Installation(where, load_params(where.params_file), Store.open(where.store))
    found = replay_decisions(installation, decisions)
    assert (found.equal, found.decisions, found.same) == (5 * len(NAMES), 5 * len(NAMES), True)
    installation.store.close()


def test_a_batch_that_was_not_stored_leaves_nothing_behind_and_is_made_again_whole(stands, tmp_path, monkeypatch):
    where = served_home(stands, tmp_path / "home")

    def down(self, records, within=None):
        raise OperationalError("INSERT", {}, Exception("database is locked"))

    async def run():
        async with started(where) as engine:
            await engine.intake.observe_all(requests(stands, 0, 15))
            with monkeypatch.context() as broken:
                broken.setattr(Store, "add_decisions", down)
                with pytest.raises(StoreFault):
                    await engine.decider.decide_all(NAMES)
            await asyncio.sleep(0.01)
            assert (engine._account.open, engine.decider._memory.made) == ({}, {})
            await polled_until(lambda: engine.store_monitor.fault is None)  # the store takes writes again
            return await engine.decider.decide_all(NAMES)

    made = asyncio.run(run())
    _, decisions = stored(where)
    assert {record.decision.id for record in decisions} == {decision.id for decision in made}
    assert len(decisions) == len(NAMES)


def test_the_newest_decisions_are_remembered_and_no_more():
    memory = DecisionMemory(None, None, None)
    decisions = [
        (DecisionKey(f"S{i % 8}", 900.0 * i, False, 1, "w", (), 2), SimpleNamespace(id=i)) for i in range(2000)
    ]
    memory.restore(decisions)
    assert len(memory.made) == MAX_CACHED_DECISIONS == 512
    assert [one.decision.id for one in memory.made.values()] == list(range(2000 - 512, 2000))


# ---- the market


def test_every_decision_states_its_market_from_its_own_row_and_the_record_keeps_every_bit(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")

    async def run():
        async with started(where) as engine:
            await engine.intake.observe_all(requests(stands, 0, 15))
            made = await engine.decider.decide_all(NAMES)
            return made, {name: symbol.closed for name, symbol in engine._symbols.items()}

    made, closed = asyncio.run(run())
    for decision in made:
        assert decision.market.keys() == MARKET_COLUMNS.keys()
        assert decision.market["volatility"] > 0.0
        assert (decision.market["book_skew"], decision.market["liquidity"]) == (None, None)  # it has no book
        rows = closed[decision.symbol].features.tobytes(), closed[decision.symbol].signals.tobytes()
        message = message_of(DecisionRecord(decision, *rows))
        part, _ = new_part(message_of(DecisionRecord(made[0], *rows)))
        assert read_record(record_of(message, part), part).decision == decision
        bare = message_of(DecisionRecord(replace(decision, market={}), *rows))
        assert len(record_of(message, part)) - len(record_of(bare, part)) < 48  # the floats stand in the row too
        old = {name: value for name, value in decision.to_dict().items() if name != "market"}
        assert type(decision).from_dict(old).market == {}


def test_an_unseen_symbol_is_answered_for_where_a_person_allows_it(stands, tmp_path):
    where = served_home(stands, tmp_path / "home")
    params = load_params(where.params_file)
    allowed = params.model_copy(update={"models": params.models.model_copy(update={"unseen_symbols": "allow"})})

    async def run():
        engine = DecisionEngine(where, allowed)
        await engine.start()
        await engine.intake.observe_all(requests(stands, 0, 15))
        made = await engine.decider.decide_all(NAMES)
        tier = engine.readiness.status()["symbols"][UNSEEN]["tier"]
        await engine.stop()
        return made[-1].models["validator"]["champion"].reason, tier

    reason, tier = asyncio.run(run())
    assert "UNSEEN_SYMBOL" not in (reason or "")
    assert tier == 2
