"""Four families in both arms, whose models answer in the shapes of the real ones, at once and without training."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipelines.contracts import Predictions, utc
from pipelines.models.views import VIEWS
from pipelines.settings import load_params
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.store import DecisionRecord
from pipelines.warm_start import read_warm_start
from serving.inference.model_slots import Slot, Snapshot
from serving.policy.decide import decide
from serving.policy.decision_row import policy_of
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.state.account import Account
from serving.state.symbols import Symbol
from serving.state.tiers import Tier
from support.serving_fixture import SYMBOL

PATTERNS = (
    "order_block", "liquidity_sweep", "fvg", "cisd", "cmt_confluence", "amt_accumulation", "amt_distribution",
    "flowstate_crt_setup", "unicorn_rating_trigger",
)  # fmt: skip
REGIMES = ("TRENDING", "RANGING", "VOLATILE", "QUIET")
CLASSES = {"validator": ("target_first",), "pattern": PATTERNS, "regime": REGIMES, "predictor": ("up",)}
# member → its number of classes; 0 = one number
MEMBERS = {
    "pattern": dict.fromkeys(("forest", "boosted", "network"), 9),
    "regime": {"hmm": 5, "volatility": 3, "trend": 3, "clustering": 4, "momentum": 3, "volume": 3, "change": 0},
    "predictor": dict.fromkeys(("lstm", "logistic", "random_forest", "xgboost"), 0),
}
ENSEMBLE = {"stated": {"logistic": 0.2, "lstm": 0.35, "random_forest": 0.25, "xgboost": 0.2}, "phases": {}}


@dataclass
class ShapedModel:
    """Answer random numbers in the shape of a family; a pattern is present at about every tenth bar."""

    family: str
    digest: str
    rng: np.random.Generator
    version: str = "1"
    golden: dict = field(default_factory=dict)

    @property
    def columns(self):
        return VALIDATOR_COLUMNS if self.family == "validator" else VIEWS[self.family].columns

    @property
    def steps(self):
        return 1 if self.family == "validator" else VIEWS[self.family].steps

    @property
    def classes(self):
        return CLASSES[self.family]

    @property
    def schema(self):
        ensemble = {"ensemble": ENSEMBLE} if self.family == "predictor" else {}
        return {"symbol": SYMBOL, "decision_timeframe": "15m", "series": {}, "miss_atr": -0.8} | ensemble

    def predict(self, rows):
        """Return one prediction for each row; nothing here depends on the row."""
        n, wide = len(rows), len(self.classes)
        p = self.rng.random((n, wide)) if wide > 1 else self.rng.random(n)
        if self.family == "pattern":
            p[self.rng.random(p.shape) > 0.1] = 0.0
        members = {
            name: self.rng.random((n, k)) if k else self.rng.random(n) for name, k in MEMBERS[self.family].items()
        } if self.family in MEMBERS else None  # fmt: skip
        if self.family == "pattern":
            members = {name: np.where(p == 0.0, 0.0, values) for name, values in members.items()}
        label = [REGIMES[int(np.argmax(row))] for row in p] if self.family == "regime" else None
        low = np.full(p.shape, np.nan) if self.family == "regime" else 0.9 * p
        return Predictions(p, low, ["OK"] * n, [None] * n, self.rng.random(n), self.digest, label, members)


def four_families(rng):
    """Return a snapshot that serves every family in both arms."""
    slots = {}
    for i, family in enumerate(CLASSES):
        for j, arm in enumerate(("champion", "challenger")):
            model = ShapedModel(family, f"{i}{j}" * 32, rng)
            slots[family, arm] = Slot(family, arm, str(j + 1), model.digest, "r" * 32, "d" * 32, "c" * 40, "passed",
                                      model)  # fmt: skip
    return Snapshot(generation=3, slots=slots)


def decisions_of(stand, n):
    """Return n decisions of four families in both arms, with their bytes, as the service makes them."""
    params, rng = load_params(), np.random.default_rng(7)
    policy, snapshot, symbol = policy_of(params), four_families(rng), Symbol(read_warm_start(stand.stage))
    closes = AssetCloses(symbol.grid, symbol.warm.closes)
    scenarios = scenarios_of({symbol.name: closes}, params.labels.horizon_bars, params.risk.tail)
    account = Account(scenarios=scenarios, newest_closes=lambda _: symbol.closes)
    records = []
    for _ in range(n):
        bars = stand.live[stand.live[:, 0] > symbol.last_open_time][:15]
        symbol.advance(bars)
        close = utc(symbol.closed.close_time)
        decision = decide(
            symbol, snapshot, policy, partial(account.portfolio, close, symbol.name), (),
            tier=Tier(1, "TIER_1: all answer"), learned={"cmt": 1.0, "ict": 1.1, "order_flow": 0.9, "fpdom": 1.0,
            "sentiment": 1.0}, id=rng.bytes(16).hex(), known_at=close, now=close,
        )  # fmt: skip
        account.add_decision(decision)
        records.append(DecisionRecord(decision, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes()))
    return records
