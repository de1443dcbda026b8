"""Whole experiments on a real store: decisions and outcomes are stored as days pass, and the monitor's code decides.

A winner acts by stages before it is promoted: its decisions name the arm that the ledger assigns them to.

A home on SQLite is made for every case, with a champion and a candidate that passed the gate on the ledger; its
outcomes are those of `benchmarks/ab_streams.py`. Seeds are counted from 0, none was left out.
"""

import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ab import DEVIATIONS, GATE_BLOCKS, LEAST_SHARE, MAX_BLOCKS, median_of, share_of
from benchmarks.ab_streams import HORIZON, PERIOD, SKILL, SYMBOLS, Stream, streams
from flows.support import experiment_guardrails, experiment_verify, experiments
from flows.support.installation import Installation, now
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, Floats, JsonObject
from pipelines.data.timeframes import Grid
from pipelines.experiments.assignment import Assigned, Assignment
from pipelines.experiments.verdict import clip_bound
from pipelines.settings import Settings, load_params
from pipelines.store import RUNNING, BarBatch, DecisionRecord, Experiment, FamilyOutcome, Promotion
from serving.inference.generation import write_generation
from serving.policy.decide import ASSIGNED
from serving.service.home_store import open_store

SEEDS = 40
RAMP_BLOCKS = 20  # canary and split of five blocks each, the lead before each, and the looks every five blocks
FAMILY, TIMEFRAME = "validator", "15m"
BAR = timedelta(minutes=15)
START = datetime(2027, 1, 1, tzinfo=UTC)
NAMES = tuple(f"SIM{i}/USDT" for i in range(SYMBOLS))
ARMS = {"champion": "c" * 64, "challenger": "d" * 64}  # digests of their bundles
# the challenger → its stream, its gain or what it is behind by, nats, and the champion's skill
CHALLENGERS = {"better": ("better", 0.030, SKILL), "equal": ("labels", 0.0, SKILL), "worse": ("worse", 0.030, 0.030)}
LEAST_BETTER, MOST_EQUAL = 36, 1  # promoted of SEEDS, as promised


def end_to_end_cases() -> tuple[str, ...]:
    """Return every case of `end_to_end`: a challenger and a seed, between bars."""
    return tuple(f"{who}|{seed}" for who in CHALLENGERS for seed in range(SEEDS))


def end_to_end(case: str) -> JsonObject:
    """Run one experiment to its end on a home of its own; return its state, and what the ledger says afterwards.

    blocks   that were scored, void ones among them; after: blocks until the one that decided
    states   that it went through; broken: why a guardrail or the check of the split would have stopped it
    same     whether the verdict computed again is the recorded one; faults: of the chain of the whole store

    The monitor looks after every block, or (`look_every`) when several have passed, as after a night without it.
    """
    who, seed = case.split("|")
    kind, gain, skill = CHALLENGERS[who]
    stream = next(streams(kind, 3000 + int(seed), 1, GATE_BLOCKS + MAX_BLOCKS + RAMP_BLOCKS, gain))
    bound = clip_bound(stream.means()[0, :GATE_BLOCKS], DEVIATIONS)
    with tempfile.TemporaryDirectory(prefix="bellwether-ab-") as scratch:
        installation = home_in(Path(scratch))
        experiment = begun(installation, bound, LEAST_SHARE * skill)
        store, every = installation.store, look_every(int(seed))
        broken = None
        for day in range(0, MAX_BLOCKS + RAMP_BLOCKS, every):
            store_days(installation, stream, day, every)
            experiments.advance(installation, FAMILY)
            broken = broken or experiment_guardrails.tripped(installation, experiment)
            if store.experiment_state(experiment.number) not in RUNNING:
                break
        again, moves = (
            experiment_verify.recompute(installation, experiment.number),
            store.transitions(experiment.number),
        )
        last, decided = moves[-1], next(move for move in moves if "decided_at" in move.evidence)
        scores, chain = store.block_scores(experiment.number), store.verify_chain([])
        store.close()
    return {
        "state": last.state, "after": decided.evidence["decided_at"] + 1, "blocks": len(scores),
        "states": " ".join(move.state for move in moves), "broken": broken or "", "misassigned": again.misassigned,
        "void": sum(score.mean is None for score in scores), "same": again.same and again.state == last.state,
        "faults": len(chain.faults), "alpha": experiment.alpha,
    }  # fmt: skip


def look_every(seed: int) -> int:
    """Return blocks between two runs of the monitor: of every fifth seed 1, of the others 5."""
    return 5 if seed % 5 else 1


def home_in(folder: Path) -> Installation:
    """Return a home whose markets are SYMBOLS simulated ones, at START, before the first bar."""
    where = Settings(home=folder, store_url="")
    installation = Installation(where, load_params(), open_store(where))
    write_generation(where.serving_dir, {}, {symbol: {} for symbol in NAMES}, now())
    installation.data.mkdir(parents=True)
    facts = {"timeframe": TIMEFRAME, "grid": Grid(TIMEFRAME).to_dict(), "first": (START - 2 * BAR).isoformat(),
             "last": (START - BAR).isoformat(), "clock": "market"}  # fmt: skip
    manifest = {"format": 2, "markets": {symbol: {"symbol": symbol, **facts} for symbol in NAMES}}
    (installation.data / "manifest.json").write_text(json.dumps(manifest))
    return installation


def begun(installation: Installation, bound: float, least_gain: float) -> Experiment:
    """Put the champion and a candidate that passed the gate on the ledger, and begin their experiment."""
    store, champion = installation.store, ARMS["champion"]
    store.add_promotion(Promotion(
        at=now(), actor="policy", action="promote", family=FAMILY, arm="champion", from_version=None, to_version="1",
        digest=champion, run_id="1", data_hash="", git_commit="", verdict_passed=True, reason="the first",
    ))  # fmt: skip
    basis = {"unit": "nats", "bound": bound, "least_gain": least_gain}
    store.add_promotion(Promotion(
        at=now(), actor="gate", action="challenge", family=FAMILY, arm="challenger", from_version=None, to_version="2",
        digest=ARMS["challenger"], run_id="2", data_hash="", git_commit="", verdict_passed=True,
        reason="passed the gate", evidence={"compared_with": champion, "experiment": basis, "reasons": []},
    ))  # fmt: skip
    verdict = store.slots(FAMILY).challenger
    assert verdict is not None
    experiment = experiments.begin(installation, verdict, "policy", "passed the gate")
    period_s = (experiment.horizons + 1) * experiment.horizon_s
    assert period_s == PERIOD * BAR.total_seconds(), "a block of the stream is not one of the experiment"
    return experiment


def store_days(installation: Installation, stream: Stream, first: int, count: int) -> None:
    """Store a decision at every close of so many market days, the outcomes of their events, and the last bars."""
    begins, ends = ((GATE_BLOCKS + day) * PERIOD for day in (first, first + count))
    closes = [START + (first * PERIOD + i) * BAR for i in range(count * PERIOD)]
    events, losses = stream.events[0, begins:ends], dict[str, Floats]()
    for arm, values in (("champion", stream.champion), ("challenger", stream.challenger)):
        assert values is not None, "a stream of gains alone has no losses"
        losses[ARMS[arm]] = values[0, begins:ends]
    assignment = installation.store.assignment(FAMILY)
    records, found = [], dict[str, list[FamilyOutcome]]()
    for column, symbol in enumerate(NAMES):
        of_symbol = found.setdefault(symbol, [])
        for i, close in enumerate(closes):
            name, event = f"{symbol[:4]}-{close:%y%m%d%H%M}", bool(events[i, column])
            made = decision(name, symbol, close, event)
            if assignment is not None:
                made = replace(made, **by_arm(assignment, symbol, close))
            records.append(DecisionRecord(made, b"", b""))
            if event:
                of_arms = {digest: float(each[i, column]) for digest, each in losses.items()}
                of_symbol.append(FamilyOutcome(name, FAMILY, symbol, close, close + HORIZON * BAR, 1.0, of_arms))
    installation.store.add_decisions(records)
    bar = np.full((1, BAR_WIDTH), 100.0)
    bar[0, OPEN_TIME] = closes[-1].timestamp()
    ended = closes[-1] + BAR
    for symbol in NAMES:
        installation.store.add_family_outcomes(symbol, found[symbol], closes[-1], closes[-1])
        installation.store.add_bars(BarBatch(symbol, bar, np.array([ended.timestamp()]), ended))


def by_arm(assignment: Assignment, symbol: str, close: datetime) -> dict[str, Any]:
    """Return what the record of a decision says of the arm that made it; nothing before the first stage."""
    block = assignment.block(close.timestamp())
    if not assignment.weight(block):
        return {}
    arm = assignment.arm(symbol, block)
    return {"arm": arm, "lineage": {ASSIGNED + FAMILY: str(Assigned(assignment.experiment, block, arm))}}


def decision(name: str, symbol: str, close: datetime, event: bool) -> Decision:
    """Return a decision that opens nothing, on an event or on none."""
    return Decision(
        id=name, symbol=symbol, as_of=close, known_at=close, ingested_at=close, direction=1 if event else 0,
        confidence=0.5, entry=100.0, stop=99.0, take_profits=(101.0,), size=0.0, expiry=close + BAR, edge_bps=0.0,
        p=0.5 if event else None, regime=None, tier=1, event="fvg" if event else None, action="NO_TRADE",
        arm="champion",
    )  # fmt: skip


def end_to_end_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by challenger how many won, were stopped and expired, and the median blocks; and what was wrong later."""
    figures: dict[str, JsonObject] = {}
    for who in CHALLENGERS:
        cases = [case for case in found if case["case"].split("|")[0] == who]
        for state in ("won", "stopped", "expired") if cases else ():
            figures[f"{who}|{state}"] = share_of(sum(case["state"] == state for case in cases), len(cases))
        if cases:
            figures[f"{who}|after"] = median_of([case["after"] for case in cases])
    if found:
        sums = {
            "not the same": sum(not case["same"] for case in found),
            "broken": sum(bool(case["broken"]) for case in found),
            **{name: sum(case[name] for case in found) for name in ("faults", "void", "blocks", "misassigned")},
        }
        for name, count in sums.items():
            figures[name] = {"value": float(count), "low": None, "high": None, "n": len(found)}
        figures["alpha"] = {"value": max(case["alpha"] for case in found), "low": None, "high": None, "n": len(found)}
    return figures
