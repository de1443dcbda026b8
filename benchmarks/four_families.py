"""Make real decisions of four families in both arms, each trained on little of a simulated market, bar by bar."""

import atexit
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from pydantic import SecretStr

from benchmarks.fixture import FAMILY, arm_of, by_symbol, fixture, prepare, serve_arms, simulated
from pipelines.contracts import CATEGORIES, Floats, JsonObject, utc
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.timeframes import Grid, resample
from pipelines.families import FAMILIES
from pipelines.params import Params
from pipelines.settings import Settings, load_params
from pipelines.stage_outputs import features_of, labels_of
from pipelines.store import DecisionRecord
from pipelines.training import stages
from pipelines.warm_start import _seal, publish_warm_start, read_warm_start
from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots
from serving.policy.decide import decide
from serving.policy.decision_row import policy_of
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.state.account import Account
from serving.state.symbols import Symbol
from serving.state.tiers import Tier

TIER = Tier(1, "TIER_1: validator champion decides; pattern, regime, predictor answer")
# Fitted on less to finish sooner: what is served has as many trees, layers and states as `params.yaml` states, so an
# answer costs what it costs in production, however good it is.
SHORTER = {
    "predictor": {"max_windows": 500, "epochs": 1, "folds": 1},
    "pattern": {"max_windows": 600, "epochs": 2, "folds": 1},
    "regime": {"em_iterations": 20, "folds": 1},
}
ALLOWED = {"models": {"unseen_symbols": "allow"}}  # changes of params.yaml under which one market's models serve all
HISTORY_DAYS, LIVE_DAYS, LEFT_OUT_DAYS = 67, 20, 7  # the challenger is trained without the first week


@dataclass(frozen=True, slots=True)
class Served:
    """Hold an installation ready to serve: home, arms by family, parameters, live 1-minute bars (n, 9), warm start.

    workspace  the folder that a champion was fitted in, with the columns and labels of its history
    """

    home: Path
    families: JsonObject
    params: Params
    live: Floats
    warm: dict[str, str]
    workspace: Path


@cache
def four_families(tiny: bool = False, live_days: int = LIVE_DAYS) -> Served:
    """Train every family in both arms on a simulated history, once a process; return the installation, ready to serve.

    live_days  of the market after its history. `tiny` has one family, two of them, and measures nothing.
    """
    if tiny:
        small = fixture(tiny)
        arms = {arm: arm_of(digest) for arm, digest in zip(("champion", "challenger"), small.digests, strict=True)}
        fitted = small.home.parent / f"seed-{small.params.seed}"
        return Served(small.home, {FAMILY: arms}, small.params, small.live, small.warm, fitted)
    root = Path(tempfile.mkdtemp(prefix="bellwether-bench-"))
    atexit.register(shutil.rmtree, root)
    params = load_params()
    params = Params(**{k: v | SHORTER.get(k, {}) if isinstance(v, dict) else v for k, v in params.model_dump().items()})
    bars = simulated(params, HISTORY_DAYS, live_days)
    history, live = np.split(bars, [HISTORY_DAYS * MINUTES_A_DAY])
    home, symbol = root / "home", params.simulator.symbol
    (home / "bundles").mkdir(parents=True)
    families: dict[str, JsonObject] = {family: {} for family in FAMILIES}
    for arm, skipped in (("challenger", LEFT_OUT_DAYS * MINUTES_A_DAY), ("champion", 0)):
        artifacts = prepare(root / arm, history[skipped:], symbol, params)
        for family in FAMILIES:
            with contextlib.chdir(root / arm), contextlib.redirect_stdout(sys.stderr):
                stages.fit_family(family, params)
            digest = json.loads((artifacts / family / "fit.json").read_text())["digest"]
            (artifacts / family / "bundle").rename(home / "bundles" / digest)
            families[family][arm] = _origin(digest)
    into = home / "serving" / "warm"
    record = json.loads((labels_of(artifacts, symbol) / "traditional.json").read_text())
    warm = publish_warm_start(features_of(artifacts, symbol) / "warm", into, data_hash=hex_of("data"), **record)
    write_generation(home / "serving", families, by_symbol(warm), datetime.now(UTC))
    return Served(home, families, params, live, warm, root / "champion")


def of_symbols(at: Served, symbols: Sequence[str], home: Path, store_url: str = "") -> Settings:
    """Return a new installation under `home` that serves these symbols: the same market under other names.

    Models answer for all of them where `models.unseen_symbols` is `allow`, as in ALLOWED.
    """
    shutil.copytree(at.home / "bundles", home / "bundles")
    named = {symbol: _renamed(at.warm, symbol, home / "serving" / "warm") for symbol in symbols}
    where = Settings(home=home, store_url=store_url, write_key=SecretStr("benchmark"))
    serve_arms(where, at.families, named, datetime.now(UTC))
    return where


def _renamed(warm: Mapping[str, str], symbol: str, into: Path) -> dict[str, str]:
    """Return the entry of the same published warm start under another symbol."""
    draft = into / symbol.replace("/", "-")
    shutil.copytree(warm["path"], draft)
    meta = json.loads((draft / "meta.json").read_text())
    digest = _seal(draft, meta | {"symbol": symbol})
    return {**warm, "digest": digest, "path": str(draft.rename(into / digest))}


def _origin(digest: str) -> JsonObject:
    """Return the entry of an arm in a generation file, with hashes as long as real ones."""
    return arm_of(digest, "7") | {"run_id": hex_of("run"), "data_hash": hex_of("data"), "git_commit": hex_of("git", 40)}


def hex_of(text: str, digits: int = 32) -> str:
    """Return hex digits like those of ids and hashes."""
    return sha256(text.encode()).hexdigest()[:digits]


@cache
def decisions(tiny: bool) -> list[DecisionRecord]:
    """Return decisions in the order in which they are made; `tiny` has one family and measures nothing."""
    return _decide(four_families(tiny), 96 if tiny else None)


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
