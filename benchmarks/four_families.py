"""Make real decisions of four families in both arms, each trained on little of a simulated market, bar by bar."""

import contextlib
import json
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from benchmarks.fixture import arm_of, by_symbol, fixture, prepare, simulated
from pipelines.contracts import CATEGORIES, Floats, JsonObject, utc
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.timeframes import Grid, resample
from pipelines.families import FAMILIES
from pipelines.params import Params
from pipelines.settings import load_params
from pipelines.stage_outputs import features_of, labels_of
from pipelines.store import DecisionRecord
from pipelines.training import stages
from pipelines.warm_start import publish_warm_start, read_warm_start
from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots
from serving.policy.decide import decide
from serving.policy.decision_row import policy_of
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.state.account import Account
from serving.state.symbols import Symbol
from serving.state.tiers import Tier

TIER = Tier(1, "TIER_1: validator champion decides; pattern, regime, predictor answer")
# Trained on less to finish sooner: what a decision holds depends on the families, not on how good they are.
SHORTER = {
    "predictor": {"max_windows": 500, "epochs": 1, "folds": 1, "forest": {"trees": 20}, "boosted": {"trees": 20}},
    "pattern": {"max_windows": 600, "epochs": 2, "folds": 1, "forest": {"trees": 30}, "boosted": {"trees": 30}},
    "regime": {"em_iterations": 20, "folds": 1},
    "validator": {"trees": 10, "depth": 3},
}
HISTORY_DAYS, LIVE_DAYS, LEFT_OUT_DAYS = 67, 20, 7  # the challenger is trained without the first week


@dataclass(frozen=True, slots=True)
class Served:
    """Hold an installation ready to serve: its home, parameters, live 1-minute bars (n, 9) and warm start."""

    home: Path
    params: Params
    live: Floats
    warm: dict[str, str]


def four_families(root: Path) -> Served:
    """Train every family in both arms on a simulated history; return the installation, ready to serve."""
    params = load_params()
    changes = {
        family: {
            k: {**getattr(params, family).model_dump()[k], **v} if isinstance(v, dict) else v for k, v in c.items()
        }
        for family, c in SHORTER.items()
    }
    params = Params(**{k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in params.model_dump().items()})
    bars = simulated(params, HISTORY_DAYS, LIVE_DAYS)
    history, live = np.split(bars, [HISTORY_DAYS * MINUTES_A_DAY])
    home = root / "home"
    (home / "bundles").mkdir(parents=True)
    families: dict[str, JsonObject] = {family: {} for family in FAMILIES}
    for arm, skipped in (("challenger", LEFT_OUT_DAYS * MINUTES_A_DAY), ("champion", 0)):
        artifacts = prepare(root / arm, history[skipped:], params.simulator.symbol, params)
        for family in FAMILIES:
            with contextlib.chdir(root / arm), contextlib.redirect_stdout(sys.stderr):
                stages.fit_family(family, params)
            digest = json.loads((artifacts / family / "fit.json").read_text())["digest"]
            (artifacts / family / "bundle").rename(home / "bundles" / digest)
            families[family][arm] = _origin(digest)
    into = home / "serving" / "warm"
    symbol = params.simulator.symbol
    record = json.loads((labels_of(artifacts, symbol) / "traditional.json").read_text())
    warm = publish_warm_start(features_of(artifacts, symbol) / "warm", into, data_hash=hex_of("data"), **record)
    write_generation(home / "serving", families, by_symbol(warm), datetime.now(UTC))
    return Served(home, params, live, warm)


def _origin(digest: str) -> JsonObject:
    """Return the entry of an arm in a generation file, with hashes as long as real ones."""
    return arm_of(digest, "7") | {"run_id": hex_of("run"), "data_hash": hex_of("data"), "git_commit": hex_of("git", 40)}


def hex_of(text: str, digits: int = 32) -> str:
    """Return hex digits like those of ids and hashes."""
    return sha256(text.encode()).hexdigest()[:digits]


@cache
def decisions(tiny: bool) -> list[DecisionRecord]:
    """Return decisions in the order in which they are made; `tiny` has one family and measures nothing."""
    if tiny:
        small = fixture(tiny)
        return _decide(Served(small.home, small.params, small.live, small.warm), 96)
    with tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch:
        return _decide(four_families(Path(scratch)), None)


def _decide(at: Served, most: int | None) -> list[DecisionRecord]:
    """Return the decisions on the live bars of an installation, as the service makes them."""
    slots = ModelSlots(at.home / "serving", at.home / "bundles", lambda *refused: None)
    snapshot = slots.pending()
    assert snapshot is not None
    assert not snapshot.refused, snapshot.refused
    symbol, policy = Symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"])), policy_of(at.params)
    closes = AssetCloses(symbol.grid, symbol.warm.closes)
    scenarios = scenarios_of({symbol.name: closes}, at.params.labels.horizon_bars, at.params.risk.tail)
    account = Account(scenarios=scenarios, newest_closes=lambda _: symbol.closes)
    rng, found = np.random.default_rng(7), []
    learned = dict.fromkeys(CATEGORIES, 1.0)
    for i, bar in enumerate(resample(at.live, Grid("1m"), Grid("15m"))[:most]):
        symbol.on_bar(bar)
        close = utc(symbol.closed.close_time)
        if i % 20 == 0:  # as after an outcome
            learned[CATEGORIES[i // 20 % len(CATEGORIES)]] = float(rng.uniform(0.8, 1.2))
        made = decide(
            symbol, snapshot, policy, partial(account.portfolio, close, symbol.name), (), tier=TIER,
            learned=dict(learned), id=hex_of(str(i)), known_at=close, now=utc(close.timestamp() + rng.random()),
        )  # fmt: skip
        account.add_decision(made)
        found.append(DecisionRecord(made, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes()))
    return found
