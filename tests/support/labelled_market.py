"""A simulated market with its rows, and decisions on its bars that models of every family answered."""

from dataclasses import replace

import numpy as np

from pipelines.contracts import OPEN_TIME, REGIMES, Decision, ModelAnswer, utc
from pipelines.data.alignment import align
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.families import FAMILIES
from pipelines.family_labels import Sources
from pipelines.features.catalog import FEATURES
from pipelines.labels.returns import HALF_LIVES
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.setups import PATTERNS, setups
from pipelines.store import DecisionRecord

MINUTES, QUARTERS = Grid("1m"), Grid("15m")
PARAMS, SYMBOL = load_params(), "SIM/USDT"
DENSITY = {
    "half_life": HALF_LIVES[3], "centre": 2.5, "power": 0.7, "shifts": (2.9, 3.0, 3.3, 2.6), "freedom": 5.0,
    "sharpness": 1.2,
}  # fmt: skip
DIGESTS = {family: family[0] * 64 for family in FAMILIES} | {"predictor": "d" * 64}
LOSS_PARAMS = {digest: DENSITY if family == "regime" else {} for family, digest in DIGESTS.items()}
CLASSES = {"pattern": PATTERNS[:7], "regime": REGIMES}  # the history lacked the last two patterns


def market_with_a_gap(days: int, gap: int) -> Sources:
    """Return the sources of so many days, as the features stage gives them; the six decision bars from
    `gap` on are missing.
    """
    spec = PARAMS.simulator.model_copy(update={"history_days": days, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    base = np.delete(base, slice(15 * gap, 15 * (gap + 6)), axis=0)
    decision = resample(base, MINUTES, QUARTERS)
    levels, context = align(decision[:, OPEN_TIME], QUARTERS, None, None)
    features, signals = FEATURES.run(decision, levels, context), SIGNALS.run(decision, levels, context)
    return Sources(base, decision, features, signals, context, QUARTERS, MINUTES, "simulator", "spot")


def answers(market, at, rng):
    """Return the answers of two versions of each family at a decision bar; the second has no bundle here."""
    side = setups(market.signals[at : at + 1])[0]
    chance, share = rng.uniform(0.2, 0.8, len(PATTERNS)), rng.dirichlet(np.ones(len(REGIMES)))
    p = {
        "validator": float(chance[0]),
        "predictor": float(chance[1]),
        "pattern": {c: float(chance[i]) if side[i] != 0.0 else 0.0 for i, c in enumerate(CLASSES["pattern"])},
        "regime": dict(zip(REGIMES, share.tolist(), strict=True)),
    }
    return {
        family: {
            "champion": ModelAnswer(family, digest=DIGESTS[family], p=value, status="OK"),
            "challenger": ModelAnswer(family, digest="gone", p=value, status="OK"),
        }
        for family, value in p.items()
    }


def decided(market, at, rng, **changes):
    """Return the decision that the service stores at the close of decision bar `at`."""
    close = utc(market.closes[at])
    made = Decision(
        id=f"d{at}", symbol=SYMBOL, as_of=close, known_at=close, ingested_at=close, action="NO_TRADE", direction=0,
        confidence=None, entry=None, stop=None, take_profits=(), size=0.0, expiry=None, edge_bps=None, p=None,
        regime=None, tier=3, arm="traditional", event=None, models=answers(market, at, rng),
    )  # fmt: skip
    rows = market.features[at].tobytes(), market.signals[at].tobytes()
    return DecisionRecord(replace(made, **changes), *rows)
