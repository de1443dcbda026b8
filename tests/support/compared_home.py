"""A small installation with MLflow in a file, a champion, candidates, and outcomes that both arms scored."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from flows.support import experiments, promotion
from flows.support.installation import Installation, now
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Check, Decision, ModelAnswer, Outcome, Verdict
from pipelines.data.timeframes import Grid
from pipelines.experiments.assignment import Assigned
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers, example
from pipelines.settings import Settings, load_params
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.store import BarBatch, DecisionRecord, FamilyOutcome
from pipelines.tracking import DataSet
from serving.inference.generation import write_generation
from serving.policy.decide import ASSIGNED
from serving.service.home_store import open_store
from support.registry import registry_in
from support.serving_fixture import make_bundle
from support.stack import quiet

START, QUARTER, DAY = datetime(2024, 6, 1, tzinfo=UTC), timedelta(minutes=15), timedelta(days=1)
BTC, ETH = "BTC/USDT", "ETH/USDT"
DATA_HASH = "d335e23d9f1432e8099436c1f33f0596.dir"
PASSED = Check("rows", True, 1000.0, None, None, ">= 200", 1000)
REFUSED = Check("rows", False, 10.0, None, None, ">= 200", 10)
LEAKED = Check("no_leak_auc", False, 0.9, None, None, "<= 0.65", 1000, "LEAK_SUSPECTED: too good")
BASIS = {
    "unit": "nats", "bound": 0.15, "rows": "champion and candidate", "blocks": 40, "skill": 0.02, "least_gain": 0.002,
    "trade_bound_bps": 60.0,
}  # fmt: skip
SPARE = 2  # versions of a filled home that nobody judged yet
NOISE = 0.02  # standard deviation of a block's mean difference


def nothing(close):
    """Return no field of an answer that is another one."""
    return {}


def compared(arms, assignment, symbol, close, answer, obeys):
    """Return what both arms add to a decision, as the service records it."""
    models = {
        arm: ModelAnswer("validator", "1", digest, "passed", p=0.5, status="OK")
        for arm, digest in zip(("champion", "challenger"), arms, strict=True)
    }
    models["challenger"] = replace(models["challenger"], **answer)
    found = {"models": {"validator": models}}
    if assignment is None or not assignment.weight(block := assignment.block(close.timestamp())):
        return found
    arm = assignment.arm(symbol, block) if obeys else "champion"
    lineage = {ASSIGNED + "validator": str(Assigned(assignment.experiment, block, arm))}
    return found | {"arm": arm, "lineage": lineage}


class ComparedHome:
    """Hold the installation and `at`, the present of its market."""

    def __init__(self, folder: Path, registry: Path):
        """Open the one in a folder, with a copy of a registry. `make` fills an empty one."""
        self.at, self.symbols = START, (BTC,)
        where = Settings(home=folder, store_url="", mlflow_port=9)
        self.installation = Installation(where, load_params(), open_store(where))
        with quiet():
            self.installation.tracking = registry_in(folder, registry)
        self.rng = np.random.default_rng(11)
        self.made = 0  # candidates that were judged
        self.waiting = []  # outcomes that are not stored yet
        self.registered = 0  # versions, those included that wait for a verdict

    def make(self):
        """Fill an empty folder: a data version, version 1 as champion, a quarter of a day, and SPARE versions."""
        write_generation(self.installation.settings.serving_dir, {}, {BTC: {}}, now())
        self.installation.data.mkdir(parents=True)
        self.universe(self.symbols)
        self.candidate()
        with quiet():
            promotion.promote(self.installation, "validator", "1", promotion.POLICY, "passed the gate")
        self.live(0.25)
        for number in range(2, 2 + SPARE):
            self.register(number, "validator")

    def go_on(self):
        """Go on from a copy of one that was filled."""
        self.at, self.made, self.registered = START + DAY / 4, 1, 1 + SPARE

    @property
    def store(self):
        return self.installation.store

    def universe(self, symbols):
        """Make these the symbols of the newest data version."""
        self.symbols = symbols
        facts = {"timeframe": "15m", "grid": Grid("15m").to_dict(), "first": START.isoformat(),
                 "last": (START - QUARTER).isoformat(), "clock": "market"}  # fmt: skip
        manifest = {"format": 2, "markets": {symbol: {"symbol": symbol, **facts} for symbol in symbols}}
        (self.installation.data / "manifest.json").write_text(json.dumps(manifest))

    def candidate(self, check=PASSED, basis=BASIS, family="validator"):
        """Register a candidate and put the gate's verdict on it, as the flow `evaluate` does; return its version."""
        self.made += 1
        is_there = self.made <= self.registered and (self.symbols, family) == ((BTC,), "validator")
        with quiet():
            version = (
                self.installation.tracking.version(family, str(self.made))
                if is_there
                else self.register(self.made, family)
            )
        reasons = () if check.passed else (f"{check.name}: {check.detail or check.value}",)
        verdict = Verdict(family, bool(check.passed), (check,), reasons)
        promotion.challenge(self.installation, version, verdict, [], "gate", basis)
        return version

    def register(self, number, family):
        """Register a version with a bundle of its own; MLflow takes its time."""
        rows = np.random.default_rng(3).normal(size=(64, len(VALIDATOR_COLUMNS)))
        digest = make_bundle(self.installation.settings.bundles, VALIDATOR_COLUMNS, rows, 0.01 * number)
        model = load_bundle(self.installation.settings.bundles / digest, digest)
        asked = example(model)
        with quiet():
            return self.installation.tracking.log_candidate(
                family, self.installation.settings.bundles / digest, params={}, metrics={}, points=[], files=[],
                tags={"digest": digest, "data_hash": DATA_HASH, "git_commit": "c", "symbols": ",".join(self.symbols)},
                title="t", example=(asked, answers(model, asked)),
                data=[DataSet(BTC, DATA_HASH, self.installation.versions / DATA_HASH, model.columns, {"rows": 42})],
            )  # fmt: skip

    def live(self, days, gain=0.0, skip=(), symbols=None, answers=None, obeys=True, late=()):
        """Let so many market days pass: every close is decided and its outcome known; the challenger gains `gain`.

        skip     closes, as hours from now, that no decision was made on
        answers  fields of the challenger's answer, by the number of the close
        obeys    whether the service decides by the arm that a close is assigned to
        late     symbols whose outcomes wait for `settle`
        """
        champion, challenger = self.arms()
        assignment = self.store.assignment("validator")
        closes = [self.at + i * QUARTER for i in range(int(days * 96))]
        offsets = {symbol: self.rng.normal(gain, NOISE, int(np.ceil(days))) for symbol in symbols or self.symbols}
        skipped = {self.at + timedelta(hours=hours) for hours in skip}
        for symbol, of_day in offsets.items():
            records, found = [], []
            for i, close in enumerate(closes):
                if close in skipped:
                    continue
                name = f"{symbol[:3]}-{close:%y%m%d%H%M}"
                made = self.decision(name, symbol, close)
                if challenger:
                    answer = (answers or nothing)(i)
                    made = replace(made, **compared((champion, challenger), assignment, symbol, close, answer, obeys))
                records.append(DecisionRecord(made, b"", b""))
                losses = {champion: 0.69, challenger: 0.69 - float(of_day[i // 96])} if challenger else {champion: 0.69}
                found.append(FamilyOutcome(name, "validator", symbol, close, close + QUARTER, float(i % 2), losses))
            self.store.add_decisions(records)
            self.waiting.append((symbol, found, closes[-1], closes[-1]))
            if symbol not in late:
                self.settle(symbol)
            row = np.full((1, BAR_WIDTH), 100.0)
            row[0, OPEN_TIME] = closes[-1].timestamp()
            self.store.add_bars(BarBatch(symbol, row, np.array([(closes[-1] + QUARTER).timestamp()]), closes[-1]))
        self.at = closes[-1] + QUARTER

    def settle(self, symbol):
        """Store the outcomes of a symbol that wait."""
        for outcomes in [one for one in self.waiting if one[0] == symbol]:
            self.store.add_family_outcomes(*outcomes)
            self.waiting.remove(outcomes)

    def decision(self, name, symbol, close):
        """Return a decision on an event that the policy refused."""
        return Decision(
            id=name, symbol=symbol, as_of=close, known_at=close, ingested_at=close, direction=1, confidence=0.8,
            entry=100.0, stop=99.0, take_profits=(101.0,), size=0.0, expiry=close + QUARTER, edge_bps=3.0, p=0.5,
            regime=None, tier=1, event="fvg", action="NO_TRADE", arm="champion",
        )  # fmt: skip

    def resolve(self, name, net_bps):
        """Give a decision the outcome of its event."""
        at = self.store.decision(name).decision.as_of + QUARTER
        self.store.add_outcome(Outcome(name, at, int(net_bps > 0), "time", net_bps + 5.0, net_bps, 5.0), at)

    def arms(self):
        """Return the digests of champion and challenger."""
        slots = self.store.slots("validator")
        return tuple(line.digest if line else None for line in (slots.champion, slots.challenger))

    def running(self):
        return experiments.running(self.installation, "validator")

    def state(self, number):
        return self.store.experiment_state(number)

    def alarms(self):
        """Return kind → detail of the open alarms."""
        return {alarm.kind: alarm.detail for alarm in self.store.alarms()}
