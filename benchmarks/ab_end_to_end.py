"""Whole experiments on a real store: decisions and outcomes are stored day by day, and the monitor's code decides.

A home on SQLite is made for every case, with a champion and a candidate that passed the gate on the ledger; its
outcomes are those of `benchmarks/ab_streams.py`. Seeds are counted from 0, none was left out.
"""

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.ab import DEVIATIONS, GATE_BLOCKS, LEAST_SHARE, MAX_BLOCKS, median_of, share_of
from benchmarks.ab_streams import HORIZON, PERIOD, SKILL, SYMBOLS, Stream, streams
from flows.support import experiments
from flows.support.installation import Installation, now
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, JsonObject
from pipelines.data.timeframes import Grid
from pipelines.experiments.verdict import clip_bound
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, DecisionRecord, Experiment, FamilyOutcome, Promotion
from serving.inference.generation import write_generation
from serving.service.home_store import open_store

SEEDS = 40
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

    blocks   that counted, and void ones; days: blocks until the state was stored
    same     whether the verdict computed again is the recorded one; faults: of the chain of the whole store
    """
    who, seed = case.split("|")
    kind, gain, skill = CHALLENGERS[who]
    stream = next(streams(kind, 3000 + int(seed), 1, GATE_BLOCKS + MAX_BLOCKS + 1, gain))
    bound = clip_bound(stream.means()[0, :GATE_BLOCKS], DEVIATIONS)
    with tempfile.TemporaryDirectory(prefix="bellwether-ab-") as scratch:
        installation = home_in(Path(scratch))
        experiment = begun(installation, bound, LEAST_SHARE * skill)
        for day in range(MAX_BLOCKS + 1):
            store_day(installation, stream, day)
            experiments.advance(installation, FAMILY)
            if installation.store.experiment_state(experiment.number) != "shadow":
                break
        again = experiments.recompute(installation, experiment.number)
        state, chain = installation.store.experiment_state(experiment.number), installation.store.verify_chain([])
        scores = installation.store.block_scores(experiment.number)
        installation.store.close()
    return {
        "state": state, "blocks": again.blocks, "void": sum(score.mean is None for score in scores), "days": day + 1,
        "same": again.same and again.state == state, "faults": len(chain.faults), "alpha": experiment.alpha,
    }  # fmt: skip


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


def store_day(installation: Installation, stream: Stream, day: int) -> None:
    """Store a decision at every close of a market day, the outcomes of its events, and its last bar."""
    bars = slice((GATE_BLOCKS + day) * PERIOD, (GATE_BLOCKS + day + 1) * PERIOD)
    closes = [START + (day * PERIOD + i) * BAR for i in range(PERIOD)]
    losses = {}
    for name, values in (("champion", stream.champion), ("challenger", stream.challenger)):
        assert values is not None, "a stream of gains alone has no losses"
        losses[ARMS[name]] = values[0, bars]
    events, records = stream.events[0, bars], []
    found: dict[str, list[FamilyOutcome]] = {symbol: [] for symbol in NAMES}
    for column, symbol in enumerate(NAMES):
        for i, close in enumerate(closes):
            name, event = f"{symbol[:4]}-{close:%y%m%d%H%M}", bool(events[i, column])
            records.append(DecisionRecord(decision(name, symbol, close, event), b"", b""))
            if event:
                of_arms = {digest: float(each[i, column]) for digest, each in losses.items()}
                ended = close + HORIZON * BAR
                found[symbol].append(FamilyOutcome(name, FAMILY, symbol, close, ended, 1.0, of_arms))
    installation.store.add_decisions(records)
    for symbol in NAMES:
        installation.store.add_family_outcomes(symbol, found[symbol], closes[-1], closes[-1])
        row = np.full((1, BAR_WIDTH), 100.0)
        row[0, OPEN_TIME] = closes[-1].timestamp()
        ended = closes[-1] + BAR
        installation.store.add_bars(BarBatch(symbol, row, np.array([ended.timestamp()]), ended))


def decision(name: str, symbol: str, close: datetime, event: bool) -> Decision:
    """Return a decision that opens nothing, on an event or on none."""
    return Decision(
        id=name, symbol=symbol, as_of=close, known_at=close, ingested_at=close, direction=1 if event else 0,
        confidence=0.5, entry=100.0, stop=99.0, take_profits=(101.0,), size=0.0, expiry=close + BAR, edge_bps=0.0,
        p=0.5 if event else None, regime=None, tier=1, event="fvg" if event else None, action="NO_TRADE",
        arm="champion",
    )  # fmt: skip


def end_to_end_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return by challenger how many were won, stopped and expired, median days until then; and what was wrong later."""
    figures: dict[str, JsonObject] = {}
    for who in CHALLENGERS:
        cases = [case for case in found if case["case"].split("|")[0] == who]
        for state in ("won", "stopped", "expired") if cases else ():
            figures[f"{who}|{state}"] = share_of(sum(case["state"] == state for case in cases), len(cases))
        if cases:
            figures[f"{who}|days"] = median_of([case["days"] for case in cases])
    if found:
        sums = {
            "not the same": sum(not case["same"] for case in found),
            **{name: sum(case[name] for case in found) for name in ("faults", "void", "blocks")},
        }
        for name, count in sums.items():
            figures[name] = {"value": float(count), "low": None, "high": None, "n": len(found)}
        figures["alpha"] = {"value": max(case["alpha"] for case in found), "low": None, "high": None, "n": len(found)}
    return figures
