"""The live decision core over the newest snapshot, with out-of-fold probabilities: what this candidate would have done.

Only decision bars from the first out-of-fold event on are walked, the categories are calibrated on bars before it, and
the probability on each event is the one the walk-forward model gave before seeing it.
"""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from flows.support.installation import Installation
from flows.support.promotion import slots_of
from pipelines.contracts import CATEGORIES, CLOSE, OPEN_TIME, REGIMES, TIMEFRAME_SECONDS, Floats
from pipelines.evaluation.backtest import Backtest, DecisionKernel, backtest
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import TARGET, UNRESOLVED, Barriers, triple_barrier
from pipelines.params import Params
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import Events, events
from pipelines.signals.regimes import market_state
from serving.policy import decision_row
from serving.policy import kernel as decision_kernel
from serving.policy.decide import REGIME, UNICORN, VOLATILITY
from serving.policy.online_weights import weights_in_force
from serving.risk.exposure import Scenarios, exposure, scenarios_of
from serving.state.online_weights_store import factor_of, initial_weights

ATR = FEATURES.index["atr_14"]


def run(installation: Installation, family: str) -> Backtest:
    """Backtest the family's out-of-fold predictions on the newest snapshot."""
    folder = installation.workspace / "artifacts"
    arrays = {
        name: np.load(folder / "features" / f"{name}.npy") for name in ("base", "decision", "features", "signals")
    }
    with np.load(folder / "labels" / "events.npz", allow_pickle=False) as f:
        index = f["index"]
    with np.load(folder / family / "oof.npz", allow_pickle=False) as f:
        bars, p, p_low = index[f["row"]], f["p"], f["p_low"]
    regime = served_regimes(installation, len(arrays["decision"]))
    step_s = TIMEFRAME_SECONDS[json.loads((folder / "features" / "meta.json").read_text())["decision_timeframe"]]
    return backtest_policy(
        **arrays, bars=bars, p=p, p_low=p_low, step_s=step_s, params=installation.params, told_regime=regime
    )


def served_regimes(installation: Installation, m: int) -> Floats:
    """(m,) regime codes that the champion's own training gave out of fold, NaN where it gave none: the live service
    takes the champion's word where there is one, so the backtest does."""
    codes = np.full(m, np.nan)
    folder = installation.workspace / "artifacts" / REGIME
    held = slots_of(installation.store, REGIME).champion
    if held is None or not (folder / "fit.json").is_file():
        return codes
    if json.loads((folder / "fit.json").read_text())["digest"] != held.digest:
        return codes
    with (
        np.load(folder / "oof.npz", allow_pickle=False) as f,
        np.load(folder.parent / "labels" / "returns.npz", allow_pickle=False) as labels,
    ):
        if "label" in f.files:
            at = {name: float(code) for code, name in enumerate(REGIMES)}
            codes[labels["index"][f["row"]]] = [at.get(word, np.nan) for word in f["label"].tolist()]
    return codes


def backtest_policy(
    base: Floats, decision: Floats, features: Floats, signals: Floats, bars: Any, p: Floats, p_low: Floats, step_s: int,
    params: Params, told_regime: Floats | None = None,
) -> Backtest:  # fmt: skip
    """Drive the compiled core over decision bars from `bars[0]` on.

    base (n, 8), decision (m, 8), features (m, kf), signals (m, ks); bars (e,) decision rows of scored events with their
    out-of-fold p and p_low (e,); an event that was not scored has no probability, so the core refuses it;
    told_regime (m,) codes of the regime model, NaN = the rule decides
    """
    first = int(bars[0])
    voices = CategoryScores.fit(signals[:first])
    told, low = np.full(len(decision), np.nan), np.full(len(decision), np.nan)
    told[bars], low[bars] = p, p_low
    raised = events(features, signals)
    side = np.zeros(len(decision))
    side[raised.index] = raised.direction
    outcome = triple_barrier(
        base, decision[raised.index, OPEN_TIME] + step_s, decision[raised.index, CLOSE], raised.direction, raised.atr,
        params.labels.target_atr, params.labels.stop_atr, float(params.labels.horizon_bars * step_s),
    )  # fmt: skip
    resolved = outcome.barrier != UNRESOLVED
    columns = {name: np.full(len(decision), np.nan) for name in ("fill", "exit", "gross")}
    for name, values in zip(columns, (outcome.start_time, outcome.exit_time, outcome.gross_bps), strict=True):
        columns[name][raised.index[resolved]] = values[resolved]
    regime, trend = market_state(features, signals)
    if told_regime is not None:
        regime = np.where(np.isfinite(told_regime), told_regime, regime)
    direction, confidence = voices.score(signals)
    rows = decision_row.to_rows(
        direction, confidence, factor=_factors(raised, direction, confidence, outcome, base, decision, step_s, params),
        independence=voices.independence, regime=regime, trend=trend,
        unicorn=signals[:, UNICORN], event=side, tier=1.0, age_bars=0.0, breakers=0.0,
        volatility=features[:, VOLATILITY], atr=np.where(side != 0, features[:, ATR], np.nan),
        price=decision[:, CLOSE], p=told, p_low=low,
    )  # fmt: skip
    strategy = np.full(len(decision), np.nan)
    strategy[raised.index] = np.unique(raised.kind, return_inverse=True)[1]
    known = decision[: first + 1]
    closes = np.column_stack([known[:, OPEN_TIME] + step_s, known[:, CLOSE]])
    walked = slice(first, None)
    return backtest(
        live_core(params, scenarios_of({"": closes}, float(params.labels.horizon_bars * step_s))), rows[walked],
        decision[walked, OPEN_TIME] + step_s, columns["fill"][walked], columns["exit"][walked],
        columns["gross"][walked], strategy[walked], params.costs.round_trip_bps, params.gate.bootstrap, params.seed,
    )  # fmt: skip


def _factors(
    raised: Events, direction: Floats, confidence: Floats, outcome: Barriers, base: Floats, decision: Floats,
    step_s: int, params: Params,
) -> Floats:  # fmt: skip
    """(m, N_SCORES) what learning would have made of the weights by each bar; ones where it only records."""
    factors = np.ones(direction.shape)
    if params.learning.use != "act":
        return factors
    done, base_s = outcome.barrier != UNRESOLVED, float(np.diff(base[:, OPEN_TIME]).min())
    at = raised.index[done]
    said = np.where(direction == 0.0, 0.0, direction * confidence)[at, : len(CATEGORIES)]
    weights = weights_in_force(
        initial_weights(params), said, raised.direction[done], (outcome.barrier[done] == TARGET).astype(np.float64),
        outcome.exit_time[done] + base_s, decision[at, OPEN_TIME] + step_s, params.learning,
    )  # fmt: skip
    for at_bar, row in zip(at, weights, strict=True):
        factors[at_bar] = factor_of(row, params)
    return factors


def live_core(params: Params, scenarios: Scenarios) -> DecisionKernel:
    """The core and the account's view as the service uses them, for the one market of a backtest."""
    return DecisionKernel(
        decision_kernel.decide_row, decision_row.flatten(params), decision_kernel.ROW_WIDTH, decision_kernel.OUT_WIDTH, decision_kernel.EVENT, decision_kernel.ACCOUNT, decision_kernel.ACTION,
        decision_kernel.SIZE, exposure, scenarios.arrays,
    )  # fmt: skip


def figures(result: Backtest) -> dict[str, Any]:
    """Its figures as plain JSON; arrays are left out, what could not be computed is null."""
    told = {k: v for k, v in asdict(result).items() if k not in ("trades", "codes", "equity")}
    told["trades"] = len(result.trades)
    return {k: ({a: _finite(b) for a, b in v.items()} if isinstance(v, dict) else _finite(v)) for k, v in told.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
