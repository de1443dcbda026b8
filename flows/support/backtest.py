"""The backtest of a candidate: the live decision kernel over the newest snapshot, with out-of-fold probabilities.

Only decision bars from the first out-of-fold event on are decided, the categories are calibrated on bars before it, and
the probability on each event is the one the walk-forward model gave before seeing it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flows.support.installation import Installation
from pipelines.contracts import CATEGORIES, CLOSE, OPEN_TIME, REGIMES, Floats, Ints, json_ready
from pipelines.costs import (
    NO_FUNDING,
    Costs,
    costs_of,
    funding_payments,
    funding_received_bps,
    left_at,
    stop_cost_bps,
    target_cost_bps,
    trade_cost_bps,
    venue_of,
)
from pipelines.data.embargo import Window, inside, windows_in
from pipelines.data.timeframes import Grid
from pipelines.evaluation.backtest import Backtest, DecisionKernel, backtest, pooled
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import TARGET, UNRESOLVED, Barriers, triple_barrier
from pipelines.models.snapshot import pooled_labels
from pipelines.params import Params
from pipelines.signals.category_scores import CategoryScores
from pipelines.signals.events import Events, events
from pipelines.signals.regimes import market_state
from pipelines.stage_outputs import facts_of, features_of, grids_of, read_meta
from pipelines.tails import ewma_volatility
from pipelines.training.labelling import read_funding
from serving.policy import decision_row
from serving.policy import kernel as decision_kernel
from serving.policy.decide import CONFLUENCE, PHASE, REGIME, UNICORN, VOLATILITY, missed_bps
from serving.policy.online_weights import weights_in_force
from serving.risk.exposure import AssetCloses, Scenarios, exposure, scenarios_of
from serving.state.online_weights_store import factor_of, initial_weights

ATR = FEATURES.index["atr_14"]


def run(installation: Installation, family: str) -> dict[str, Backtest]:
    """Return market → the backtest of the family's out-of-fold predictions on the newest snapshot."""
    artifacts = installation.workspace / "artifacts"
    return of_markets(artifacts, family, served_regimes(installation), installation.params)


def of_markets(artifacts: Path, family: str, regimes: Mapping[str, Floats], params: Params) -> dict[str, Backtest]:
    """Return the same of the outputs of the stages in `artifacts`: a tenth of a second a market and year.

    Of every market with a scored event; each decides by itself, with an account of its own.
    regimes  market → (m,) codes, as `served_regimes` returns them
    """
    events_found, meta = pooled_labels(artifacts, "events"), read_meta(artifacts)
    with np.load(artifacts / family / "oof.npz", allow_pickle=False) as f:
        row, p, p_low, miss_atr = f["row"], f["p"], f["p_low"], missed(f)
    found = {}
    for code, symbol in enumerate(events_found.symbols):
        of = events_found.symbol[row] == code
        if of.any():
            folder, facts = features_of(artifacts, symbol), facts_of(meta, symbol)
            arrays = {name: np.load(folder / f"{name}.npy") for name in ("base", "decision", "features", "signals")}
            grid, base_grid = grids_of(facts)
            found[symbol] = backtest_policy(
                **arrays, funding=read_funding(folder, facts), bars=events_found.arrays["index"][row[of]], p=p[of],
                p_low=p_low[of], miss_atr=miss_atr[of], grid=grid, base_grid=base_grid, params=params,
                model_regime=regimes.get(symbol), costs=costs_of(params.costs, *venue_of(facts)),
                windows=windows_in(facts),
            )  # fmt: skip
    return found


def missed(oof: Mapping[str, Floats]) -> Floats:
    """Return (e,) what each row's fold expects of a missed target, in ATR; NaN where it has no estimate.

    oof  arrays of `oof.npz`; those of an earlier release have none. `decide.missed_bps` has the fallback, as live
    """
    return oof.get("miss_atr", np.full(len(oof["p"]), np.nan))


def served_regimes(installation: Installation) -> dict[str, Floats]:
    """Return market → (m,) regime codes that the champion's own training gave out of fold, NaN where it gave none.

    The live service uses the champion's label where there is one, so the backtest does. Empty without such a champion.
    """
    artifacts = installation.workspace / "artifacts"
    folder, champion = artifacts / REGIME, installation.store.slots(REGIME).champion
    if champion is None or not (folder / "fit.json").is_file():
        return {}
    if json.loads((folder / "fit.json").read_text())["digest"] != champion.digest:
        return {}
    with np.load(folder / "oof.npz", allow_pickle=False) as f:
        if "label" not in f.files:
            return {}
        row, labels = f["row"], f["label"].tolist()
    at = {name: float(code) for code, name in enumerate(REGIMES)}
    values, bars = np.array([at.get(label, np.nan) for label in labels]), pooled_labels(artifacts, "returns")
    codes = {}
    for code, symbol in enumerate(bars.symbols):
        of = bars.symbol[row] == code
        decision = np.load(features_of(artifacts, symbol) / "decision.npy", mmap_mode="r")
        codes[symbol] = np.full(len(decision), np.nan)
        codes[symbol][bars.arrays["index"][row[of]]] = values[of]
    return codes


def backtest_policy(
    base: Floats, decision: Floats, features: Floats, signals: Floats, bars: Ints, p: Floats, p_low: Floats,
    miss_atr: Floats, grid: Grid, base_grid: Grid, params: Params, model_regime: Floats | None = None,
    costs: Costs | None = None, funding: Floats = NO_FUNDING, windows: Sequence[Window] = (),
) -> Backtest:  # fmt: skip
    """Return the backtest of the compiled kernel over decision bars from `bars[0]` on.

    base (n, 9), decision (m, 9), features (m, kf), signals (m, ks); bars (e,) decision rows of scored events with their
    out-of-fold p and p_low (e,), and miss_atr (e,), what the same fold expects of a missed target, in ATR, NaN where it
    has no estimate; an event that was not scored has no probability, so the kernel refuses it; grids of decision and
    base bars; model_regime (m,) codes of the regime model, NaN = the rule decides; costs of the market, None = the
    default row; funding (r, 2) of costs.funding_rates; windows of the calendar of events, in which nothing is opened
    """
    first = int(bars[0])
    scores = CategoryScores.fit(signals[:first])
    p_at_bar, low, miss_at_bar = np.full((3, len(decision)), np.nan)
    p_at_bar[bars], low[bars], miss_at_bar[bars] = p, p_low, miss_atr
    raised = events(features, signals)
    side = np.zeros(len(decision))
    side[raised.index] = raised.direction
    disabled = np.zeros(len(decision))
    disabled[raised.index] = np.isin(raised.kind, params.signals.disabled)
    known = grid.closes(decision[:, OPEN_TIME])
    raised_at = known[raised.index]
    outcome = triple_barrier(
        base, raised_at, decision[raised.index, CLOSE], raised.direction, raised.atr,
        params.labels.target_atr, params.labels.stop_atr, grid.deadline(raised_at, params.labels.horizon_bars),
    )  # fmt: skip
    costs = costs or costs_of(params.costs, None, None)
    held_to = left_at(outcome.exit_time, base_grid.closes(outcome.exit_time), outcome.barrier)
    received = funding_received_bps(funding_payments(funding, costs), raised.direction, outcome.start_time, held_to)
    cost = trade_cost_bps(costs, outcome.barrier, outcome.spread_known, received)
    fill, exit_time, left, gross, paid = (
        _at_bars(values, raised, outcome, len(decision))
        for values in (outcome.start_time, outcome.exit_time, held_to, outcome.gross_bps, cost)
    )
    regime, trend = market_state(features, signals)
    if model_regime is not None:
        regime = np.where(np.isfinite(model_regime), model_regime, regime)
    direction, confidence = scores.score(signals)
    rows = decision_row.to_rows(
        direction, confidence, factor=_factors(raised, direction, confidence, outcome, base_grid, known, params),
        independence=scores.independence, regime=regime, trend=trend,
        unicorn=signals[:, UNICORN], confluence=signals[:, CONFLUENCE], phase=signals[:, PHASE],
        event=side, tier=1.0, age_bars=0.0, breakers=0.0,
        embargoed=inside(known, windows), disabled=disabled,
        volatility=features[:, VOLATILITY], atr=np.where(side != 0, features[:, ATR], np.nan),
        price=decision[:, CLOSE], cost_bps=target_cost_bps(costs, decision),
        stop_cost_bps=stop_cost_bps(costs, decision), p=p_at_bar, p_low=low,
        miss_bps=missed_bps(miss_at_bar, features[:, ATR], costs, params),
    )  # fmt: skip
    strategy = np.full(len(decision), np.nan)
    strategy[raised.index] = np.unique(raised.kind, return_inverse=True)[1]
    # what a warm start of that moment would hold, and the volatility that the service would know at each later close
    closes = np.column_stack([known, decision[:, CLOSE]])[: first + 1]
    scenarios = scenarios_of({"": AssetCloses(grid, closes)}, params.labels.horizon_bars, params.risk.tail)
    volatility = ewma_volatility(np.ascontiguousarray(decision[:, CLOSE]), scenarios.decay)
    decided = slice(first, None)
    return backtest(
        live_core(params, scenarios), rows[decided],
        known[decided], fill[decided], exit_time[decided], left[decided],
        gross[decided], strategy[decided], volatility[decided], paid[decided],
    )  # fmt: skip


def _at_bars(values: Floats, raised: Events, outcome: Barriers, m: int) -> Floats:
    """Return (m,) the values of resolved events at their decision bars, NaN elsewhere."""
    at_bars, resolved = np.full(m, np.nan), outcome.barrier != UNRESOLVED
    at_bars[raised.index[resolved]] = values[resolved]
    return at_bars


def _factors(
    raised: Events, direction: Floats, confidence: Floats, outcome: Barriers, base_grid: Grid, known: Floats,
    params: Params,
) -> Floats:  # fmt: skip
    """Return (m, N_SCORES) factors of the weights, as learning would have set them by each bar.

    Ones where learning only records (`learning.use`).
    """
    factors = np.ones(direction.shape)
    if params.learning.use != "act":
        return factors
    done = outcome.barrier != UNRESOLVED
    at = raised.index[done]
    votes = np.where(direction == 0.0, 0.0, direction * confidence)[at, : len(CATEGORIES)]
    weights = weights_in_force(
        initial_weights(params), votes, raised.direction[done], (outcome.barrier[done] == TARGET).astype(np.float64),
        base_grid.closes(outcome.exit_time[done]), known[at], params.learning,
    )  # fmt: skip
    for at_bar, row in zip(at, weights, strict=True):
        factors[at_bar] = factor_of(row, params)
    return factors


def live_core(params: Params, scenarios: Scenarios) -> DecisionKernel:
    """Return the decision kernel and the account's exposure as the service uses them, for one market."""
    return DecisionKernel(
        decision_kernel.decide_row, decision_row.flatten(params), decision_kernel.ROW_WIDTH, decision_kernel.OUT_WIDTH,
        decision_kernel.EVENT, decision_kernel.ACCOUNT, decision_kernel.ACTION, decision_kernel.SIZE,
        exposure, scenarios.arrays,
    )  # fmt: skip


def figures(results: Mapping[str, Backtest]) -> dict[str, Any]:
    """Return the figures of the backtests of all markets as plain JSON: of all, and of each `by_symbol`.

    Arrays are left out, what could not be computed is null. Of several markets each has an equal part of the account.
    """
    found = _figures(pooled(list(results.values())))
    return {**found, "by_symbol": {symbol: _figures(each) for symbol, each in results.items()}}


def _figures(result: Backtest) -> dict[str, Any]:
    """Return the figures of one backtest."""
    found = {k: v for k, v in asdict(result).items() if k not in ("trades", "codes", "equity", "decided_at")}
    found["trades"] = len(result.trades)
    return dict(json_ready(found))
