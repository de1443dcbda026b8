"""L4 on ten thousand decisions: each is made again, bit for bit, and a lost link is named."""

import json
from collections import defaultdict
from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.serving_fixture import make_bundle, market, onnx_bytes, slot_entry

from bellwether.operations.replay_decisions import differences, replay_decisions
from flows.support.installation import Installation
from pipelines.backup import back_up, restore
from pipelines.compiled import cpu_type
from pipelines.contracts import OPEN_TIME, Decision, History, Outcome, utc
from pipelines.data.alignment import align
from pipelines.data.timeframes import Grid
from pipelines.experiments.assignment import Assignment, Stage
from pipelines.features.catalog import FEATURES
from pipelines.models.scorers import ONNX, RUNTIMES
from pipelines.settings import Settings, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import validator_columns
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.store import BarBatch, Promotion, Store
from pipelines.warm_start import publish_warm_start, read_warm_start, write_warm_start
from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.policy.decide import decide
from serving.policy.decision_row import policy_of
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.service.alarm_queue import AlarmQueue
from serving.service.ramp_guard import RampGuard
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol, restore_symbol
from serving.state.tiers import Tier

QUARTERS = Grid("15m")

assert onnx_bytes
SYMBOL, STEP_S = "SIM/USDT", 900.0
HISTORY, DECISIONS, EVERY = 800, 10_000, 1_250  # decision bars: before, decided on, between two promotions
SPLITS = (2, 3)  # of the promotions: after these an experiment splits the closes
PARAMS = load_params()
TIER = Tier(2, "TIER_2: validator champion decides")
MISSES = {0.1: None, 0.2: -0.9, 0.3: -0.7}  # bias of a bundle → what it says a missed target returns, in ATR
COMPILED = {0.2}  # biases of the bundles of compiled trees; the others name no runtime, as up to 0.13.0


def bars_of(n):
    """A seeded market whose base bars are decision bars."""
    rows = market(n)
    rows[:, OPEN_TIME] = rows[0, OPEN_TIME] + STEP_S * np.arange(n)
    return rows


def warm_start(home, bars, name):
    """What the features stage leaves after these bars, published. Returns its entry in a generation file."""
    states = FEATURES.fresh(), SIGNALS.fresh()
    features, signals = FEATURES.run(bars, state=states[0]), SIGNALS.run(bars, state=states[1])
    levels, context = align(bars[:, OPEN_TIME], QUARTERS, None, None)
    write_warm_start(
        home / name, symbol=SYMBOL, base_grid=QUARTERS, grid=QUARTERS, feature_state=states[0],
        signal_state=states[1], base=bars, history=History(bars, features, signals, levels, context),
        category_scores=CategoryScores.fit(signals), clock="market", venue="simulator", market="spot",
    )  # fmt: skip
    published = publish_warm_start(home / name, home / "serving" / "warm", data_hash="d" * 32, hits=230, n=500,
                                   miss_atr=None if name == "first" else -0.8)  # fmt: skip
    return published, validator_columns(features, signals)


def line(version, digest, action="promote"):
    return Promotion(
        at=utc(0), actor="tests", action=action, family="validator", arm="champion", from_version=None,
        to_version=version, digest=digest, run_id=f"run{version}", data_hash="d" * 32, git_commit="c" * 40,
        verdict_passed=True, reason="tests",
    )  # fmt: skip


def assignment_of(digests, arms, at):
    """How the units of an experiment are assigned that runs from one promotion to the next."""
    champion, challenger = digests[arms["champion"]], digests[arms["challenger"]]
    return Assignment(at, "ef" * 32, 0.0, 24 * STEP_S, champion, challenger, stages=(Stage(0, 0.5),)).to_dict()


def scenarios_for(symbol):
    asset = AssetCloses(symbol.grid, symbol.warm.closes)
    return scenarios_of({SYMBOL: asset}, PARAMS.labels.horizon_bars, PARAMS.risk.tail)


def _closes_of(symbol, name):
    return symbol.closes


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """Ten thousand decisions taken as the service takes them, over eight promotions and two warm starts."""
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    bars = bars_of(HISTORY + DECISIONS)
    store = Store.open(f"sqlite:///{home / 'store.db'}")
    first, rows = warm_start(home, bars[:HISTORY], "first")
    rows = rows[600:]
    here = ~np.isnan(rows).any(axis=0)
    columns = tuple(np.array(VALIDATOR_COLUMNS)[here].tolist())
    digests = [
        make_bundle(home / "bundles", columns, rows[:, here], bias, miss_atr=miss, trees=bias in COMPILED)
        for bias, miss in MISSES.items()
    ]
    for version, digest in enumerate(digests, 1):
        store.add_promotion(line(str(version), digest))
    slots, account, ledger = ModelSlots(home / "serving", home / "bundles", lambda *_: None), Account(), Ledger(store)
    policy, warm, symbol, waiting, live = policy_of(PARAMS), first, None, [], bars[HISTORY:]
    guard = RampGuard(PARAMS.experiment.guardrails, account, AlarmQueue())
    store.add_parameters(policy.digest, policy.content, utc(bars[0, OPEN_TIME]))

    def observed(shown):
        known = shown[:, OPEN_TIME] + STEP_S
        waiting.append(ledger.observe(BarBatch(SYMBOL, shown, known, utc(known[-1]))))

    for i, bar in enumerate(live):
        if i % EVERY == 0:  # the next champion, and its challenger in shadow; once also a newer warm start
            if i > 0:
                observed(live[i - EVERY : i])
            arms = {"champion": i // EVERY % 3, "challenger": (i // EVERY + 1) % 3}
            families = {"validator": {arm: slot_entry(str(k + 1), digests[k]) for arm, k in arms.items()}}
            if i == DECISIONS // 2:
                warm, _ = warm_start(home, bars[: HISTORY + i - 40], "second")
            assigned = {"validator": assignment_of(digests, arms, i)} if i // EVERY in SPLITS else None
            write_generation(home / "serving", families, {SYMBOL: warm}, utc(bar[OPEN_TIME]), assigned)
            slots.refresh()
            if symbol is None or symbol.warm.digest != warm["digest"]:
                wait(waiting)  # what it is replayed from must be in the store
                symbol = restore_symbol(read_warm_start(Path(warm["path"]), warm["digest"]), store.bars(SYMBOL))
                account.scenarios = scenarios_for(symbol)
                account.newest_closes = partial(_closes_of, symbol)
        close = utc(bar[OPEN_TIME] + STEP_S)
        symbol.advance(bar[np.newaxis])
        decision = decide(
            symbol, slots.snapshot, policy, partial(account.portfolio, close, SYMBOL), (), tier=TIER, id=f"d{i}",
            known_at=close, now=close, assigned=guard.assigned(slots.snapshot, symbol),
        )  # fmt: skip
        account.add_decision(decision)
        if decision.action != "NO_TRADE":
            ended = close + timedelta(hours=4)
            account.resolve(Outcome(decision.id, ended, i % 2, "target", 20.0 if i % 2 else -30.0, 15.0, 5.0))
        closed = symbol.closed
        waiting.append(ledger.append(decision, closed.features.tobytes(), closed.signals.tobytes()))
    observed(live[-EVERY:])
    wait(waiting)
    ledger.close()
    yield Installation(Settings(home=home, store_url=""), PARAMS, store)
    store.close()


def runtime_of(installation, digest):
    """The runtime that the bundle of a recorded decision is opened with."""
    schema = json.loads((installation.settings.bundles / digest / "schema.json").read_text())
    return schema.get("model", {}).get("runtime", ONNX)


@pytest.fixture(scope="module")
def records(installation):
    """Every stored decision, read once."""
    return installation.store.decisions()


def test_ten_thousand_decisions_over_several_promotions_come_out_the_same_to_the_last_bit(installation, records):
    found = replay_decisions(installation, records)
    assert found.to_dict() == found.to_dict() | {"decisions": DECISIONS, "equal": DECISIONS, "bit_for_bit": True}
    assert len(found.champions) == 3
    assert {runtime_of(installation, digest) for _, digest in found.champions} == set(RUNTIMES)
    assert {record.decision.arm for record in records} == {"champion", "challenger"}
    assert len(found.generations) == DECISIONS // EVERY
    assert len(found.warm_starts) == 2
    assert sum(record.decision.event is not None for record in records) > 500
    assert len({tuple(record.decision.account.values()) for record in records}) > 10


def on_card(record, arm=None, p=0.0):
    """The same decision as if a card had answered, one arm's probability moved by `p`."""
    arms = record.decision.models["validator"]
    answers = {
        name: replace(answer, device="cuda:0 fp32", p=answer.p + (p if name == arm else 0.0))
        for name, answer in arms.items()
    }
    return replace(record, decision=replace(record.decision, models={"validator": answers}))


def test_answers_of_a_card_are_replayed_as_stored_and_recomputed_within_its_tolerance(installation, records):
    record = next(r for r in records if r.decision.event is not None and r.decision.arm == "champion")
    stored = replay_decisions(installation, [on_card(record, "challenger", 3e-5)])
    assert stored.same
    assert stored.stored_answers == {"cuda:0 fp32": 2}
    near = replay_decisions(installation, [on_card(record, "challenger", 8e-6)], recompute=True)
    assert near.same
    assert near.recomputed == {"cuda:0 fp32": 2}
    far = replay_decisions(installation, [on_card(record, "challenger", 3e-5)], recompute=True)
    assert not far.same
    assert far.different[0]["fields"] == ["models.validator.challenger.p"]


def test_the_edge_counts_what_the_deciding_bundle_knew_of_missed_targets_and_else_the_whole_stop(installation, records):
    decided, bundles = defaultdict(list), installation.settings.bundles
    for record in records:
        if record.decision.edge_bps is not None:
            champion = record.decision.models["validator"][record.decision.arm].digest
            decided[json.loads((bundles / champion / "schema.json").read_text()).get("miss_atr")].append(
                record.decision
            )
    assert set(decided) == set(MISSES.values())
    for miss_atr, decisions in decided.items():
        origin = "the whole stop: the bundle has no estimate" if miss_atr is None else "estimate of the bundle"
        assert {d.lineage["miss"] for d in decisions} == {origin}
        for d in decisions:
            stop_bps = abs(d.entry - d.stop) / d.entry * 1e4
            missed = -1.0 if miss_atr is None else miss_atr
            assert d.edge_bps == pytest.approx((d.p * 1.5 + (1.0 - d.p) * missed) * stop_bps - 5.0)


def test_in_tier_three_it_is_what_the_traditional_consensus_returned_or_the_whole_stop(installation):
    """The second warm start of this installation has an estimate, the first has none: a whole stop, and it slips."""
    bars, found = bars_of(HISTORY + DECISIONS), {}
    slips = PARAMS.costs.venues["simulator"]["spot"].model_copy(update={"stop_slippage_bps": 3.0})
    costs = PARAMS.costs.model_copy(update={"venues": {"simulator": {"spot": slips}}})
    params = PARAMS.model_copy(update={"costs": costs})
    three = Tier(3, "TIER_3: no model")
    for folder in (installation.settings.serving_dir / "warm").iterdir():
        symbol, account = Symbol(read_warm_start(folder)), Account()
        account.scenarios = scenarios_for(symbol)
        account.newest_closes = partial(_closes_of, symbol)
        for bar in bars[bars[:, OPEN_TIME] > symbol.warm.last_open_time][:400]:
            symbol.advance(bar[np.newaxis])
            close = utc(symbol.closed.close_time)
            d = decide(
                symbol, Snapshot(), policy_of(params), partial(account.portfolio, close, SYMBOL), (), tier=three,
                predictions={}, id="t", known_at=close, now=close,
            )  # fmt: skip
            if d.edge_bps is not None:
                stop_bps = abs(d.entry - d.stop) / d.entry * 1e4
                missed = (d.edge_bps + symbol.target_cost_bps(costs) - 1.5 * d.p * stop_bps) / (1.0 - d.p)
                found[d.lineage["miss"]] = missed, stop_bps
    without, known = found["the whole stop: the warm start has no estimate"], found["estimate of the warm start"]
    assert len(found) == 2
    assert without[0] == pytest.approx(-without[1] - 3.0)
    assert known[0] == pytest.approx(-0.8 * known[1])


def test_a_decision_that_was_altered_is_found_with_the_field(installation):
    record = installation.store.decision("d7000")
    altered = json.loads(json.dumps(record.decision.lineage)) | {"regime": "somebody else"}
    for changed, field in (
        (replace(record, decision=replace(record.decision, size=0.5)), "size"),
        (replace(record, decision=replace(record.decision, lineage=altered)), "lineage.regime"),
        (replace(record, features=record.features[:-1] + b"\x01"), "features"),
    ):
        found = replay_decisions(installation, [changed])
        assert (found.equal, found.different[0]["fields"]) == (0, [field])


@pytest.mark.parametrize("lost", ["bundle", "warm start", "bars", "params"])
def test_a_lost_link_is_named_and_its_decision_does_not_count_as_equal(installation, lost, tmp_path):
    record = installation.store.decision("d1000")
    digest = record.decision.models["validator"]["champion"].digest
    folder = {
        "bundle": installation.settings.bundles / digest,
        "warm start": installation.settings.serving_dir / "warm" / record.decision.lineage["warm_start"],
    }.get(lost)
    if folder is not None:
        folder.rename(tmp_path / "aside")
        found = replay_decisions(installation, [record])
        (tmp_path / "aside").rename(folder)
    elif lost == "bars":
        empty = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
        for version, bundle in ((k.version, k.digest) for k in record.decision.models["validator"].values()):
            empty.add_promotion(line(version, bundle))
        found = replay_decisions(Installation(installation.settings, installation.params, empty), [record])
        empty.close()
    else:
        found = replay_decisions(installation, [changed(record, "lineage", record.decision.lineage | {"params": "0"})])
    assert (found.equal, found.bit_for_bit, sum(found.not_replayable.values())) == (0, False, 1)
    words = {"bundle": digest[:12], "warm start": "is not kept", "bars": "no stored bar", "params": "are not stored"}
    assert words[lost] in next(iter(found.not_replayable))


def changed(record, name, value):
    """Return a record whose decision has another value."""
    return replace(record, decision=replace(record.decision, **{name: value}))


def dearer():
    """Return params.yaml with another fee."""
    venue = PARAMS.costs.venues["simulator"]["spot"]
    costs = {"venues": {**PARAMS.costs.venues, "simulator": {"spot": venue.model_copy(update={"taker_bps": 9.0})}}}
    return PARAMS.model_copy(update={"costs": PARAMS.costs.model_copy(update=costs)})


def test_yesterday_is_replayed_by_the_parameters_of_yesterday(installation):
    records = installation.store.decisions(last=300)
    today = replace(installation, params=dearer())
    assert policy_of(today.params).digest != records[0].decision.lineage["params"]
    assert replay_decisions(today, records).bit_for_bit
    older = [changed(record, "lineage", {k: v for k, v in record.decision.lineage.items() if k != "params"})
             for record in records]  # fmt: skip
    (why,) = replay_decisions(today, older).not_replayable
    assert why.startswith("params.yaml has changed since")


def test_on_postgresql_too_yesterday_is_replayed_by_its_parameters(installation, postgres_url, tmp_path):
    back_up(installation.settings.store, tmp_path / "backup.zip", utc(0.0), dict)
    restore(postgres_url, tmp_path / "backup.zip")
    with closing(Store.open(postgres_url)) as moved:
        records = moved.decisions(last=100)
        assert records == installation.store.decisions(last=100)
        assert replay_decisions(replace(installation, params=dearer(), store=moved), records).bit_for_bit


def test_parameters_that_are_not_stored_are_named(installation):
    (record,) = installation.store.decisions(last=1)
    lost = changed(record, "lineage", record.decision.lineage | {"params": "0" * 64})
    assert replay_decisions(installation, [lost]).not_replayable == {"parameters 000000000000 are not stored": 1}


def test_a_decision_of_another_release_that_is_made_otherwise_is_named_so_and_is_no_difference(installation):
    (record,) = installation.store.decisions(last=1)
    older = changed(record, "lineage", record.decision.lineage | {"release": "0.0.1"})
    assert replay_decisions(installation, [older]).bit_for_bit
    found = replay_decisions(installation, [changed(older, "size", 0.9)])
    assert not found.different
    ((why, n),) = found.not_replayable.items()
    assert ("other release: 0.0.1" in why, n) == (True, 1)


def test_a_decision_of_an_earlier_release_loads_and_is_not_replayable_with_the_reason(installation):
    """It has the account, and names neither what a miss returns nor its thresholds: edge and size had other rules."""
    record = installation.store.decision("d7000")
    stored = record.decision.to_dict()
    del stored["thresholds"], stored["lineage"]["miss"]
    old = Decision.from_dict(json.loads(json.dumps(stored)))
    assert old.thresholds == {}
    found = replay_decisions(installation, [replace(record, decision=old)])
    assert (found.equal, found.same) == (0, False)
    assert dict(found.not_replayable) == {"an earlier release decided it: edge and size followed other rules": 1}


def test_nothing_to_replay_is_not_a_success(installation):
    assert not replay_decisions(installation, []).bit_for_bit


def test_differences_are_named_by_their_path_numbers_to_the_last_bit():
    old = {"a": {"b": 0.1 + 0.2, "c": None}, "d": [1, 2]}
    assert differences(old, {"a": {"b": 0.3, "c": None}, "d": [1, 2]}) == ["a.b"]
    assert differences(old, {"a": {"b": 0.1 + 0.2}, "d": [1, 3], "e": 1}) == ["a.c", "d", "e"]
    assert differences(old, old) == []


def test_on_another_cpu_type_numbers_may_differ_in_the_last_bits_and_the_report_names_it(installation, records):
    record = next(r for r in records if r.decision.confidence)
    old = record.decision
    lineage, near = old.lineage | {"cpu": "cray-1"}, float(np.nextafter(old.confidence, 2.0))
    features = np.nextafter(np.frombuffer(record.features), np.inf).tobytes()
    elsewhere = replace(record, decision=replace(old, lineage=lineage, confidence=near), features=features)
    found = replay_decisions(installation, [elsewhere])
    assert (found.equal, found.same, found.bit_for_bit) == (1, True, False)
    assert found.other_cpu == {"other CPU: cray-1": 1}
    here = replay_decisions(installation, [replace(record, decision=replace(old, confidence=near))])
    assert here.different[0]["fields"] == ["confidence"]
    assert here.different[0]["made_on"] == cpu_type()
    far = replace(elsewhere, decision=replace(old, lineage=lineage, confidence=old.confidence * (1 + 1e-9)))
    (different,) = replay_decisions(installation, [far]).different
    assert different["fields"] == ["confidence"]
    assert different["made_on"].startswith("other CPU: cray-1, this is ")


def test_a_decision_that_names_no_cpu_is_compared_to_the_last_bit(installation):
    record = installation.store.decision("d7000")
    lineage = {name: value for name, value in record.decision.lineage.items() if name != "cpu"}
    assert replay_decisions(
        installation, [replace(record, decision=replace(record.decision, lineage=lineage))]
    ).bit_for_bit
