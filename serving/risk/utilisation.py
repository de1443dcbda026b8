"""Report the use of every limit, the tail by asset and what would be refused now: the answer of `/risk` (R4–R8)."""

from collections.abc import Mapping
from datetime import datetime
from math import isfinite, isnan

import numpy as np

from pipelines.contracts import CLOSE, Floats, JsonObject, finite_or_none, utc
from pipelines.data.embargo import window_at
from pipelines.data.symbols import currency_of
from pipelines.features.catalog import FEATURES
from pipelines.params import Params
from pipelines.tails import tail_losses
from serving.policy import decision_row
from serving.policy import kernel as decision_kernel
from serving.policy.decide import VOLATILITY, regime_now
from serving.policy.fusion import N_SCORES
from serving.risk.codes import LAYERS, TIER_CLOSED, bits_of
from serving.risk.exposure import ES_LEVEL, allocation
from serving.risk.limits import BUDGETS, STAGES, stage_of
from serving.risk.sizing import CAPS
from serving.state.account import Account
from serving.state.symbols import Symbol

ATR = FEATURES.index["atr_14"]
OF_THE_ACCOUNT = ("data", "position", "portfolio", "drawdown", "system")  # layers that need no signal
SIDES = {"long": 1.0, "short": -1.0}


def utilisation(
    account: Account,
    symbols: Mapping[str, Symbol],
    at: datetime,
    params: Params,
    flat: Floats,
    breakers: tuple[str, ...],
    tiers: Mapping[str, int],
) -> JsonObject:
    """Return every limit with its use at the close `at`, as plain JSON; null = not known.

    tiers  symbol → its tier
    """
    found = account.portfolio(at)
    positions = account.positions(at)
    volatility = account.volatility()
    net, parts = allocation(positions, account.scenarios, volatility)
    stages = flat[decision_kernel.STAGE_FROM_AT : decision_kernel.STAGE_SIZE_AT]
    stage = stage_of(found.drawdown, params.risk.max_drawdown, stages)
    return {
        "as_of": at.isoformat(),
        "account": account.source,
        "equity": account.equity,
        "stage": STAGES[stage],
        "stage_size_multiplier": float(flat[decision_kernel.STAGE_SIZE_AT + stage]),
        "breakers": list(breakers),
        "limits": _limits(account, at, params, found),
        "positions": [
            {
                "id": d.id,
                "symbol": d.symbol,
                "side": d.action,
                "size": account.size_of(d),
                "strategy": d.event,
                "entry": d.entry,
                "stop": d.stop,
                "take_profits": list(d.take_profits),
                "expiry": d.expiry and d.expiry.isoformat(),
            }
            for d in account.open_positions(at)
        ],
        "tail": {
            "level": ES_LEVEL,
            "hours": max((s.grid.span_s(params.labels.horizon_bars) for s in symbols.values()), default=0.0) / 3600.0,
            "methods": {name: params.risk.tail.method(symbol.grid.timeframe) for name, symbol in symbols.items()},
            "scenarios": len(account.scenarios.filtered),
            "var": _var(positions, account, net, volatility),
            "es": finite_or_none(found.es),
            "stress": finite_or_none(found.stress),
            "concentration": _concentration(net),
            "by_asset": {
                name: {"net": float(net[a]), "es": finite_or_none(float(parts[a]))}
                for name, a in account.scenarios.codes.items()
                if net[a] != 0.0
            },
        },
        "next": [
            _next(account, symbol, side, at, params, flat, breakers, tiers.get(name, 4))
            for name, symbol in symbols.items()
            for side in SIDES
        ],
    }


def limits_of(params: Params) -> list[JsonObject]:
    """Return every limit of params.yaml as a row of layer, name, value and what it limits."""
    risk = params.risk
    rows: list[JsonObject] = []

    def add(layer: str, name: str, value: float, holds: str) -> None:
        """Append one row."""
        rows.append({"layer": layer, "name": name, "value": value, "holds": holds})

    add("data", "max_data_age_bars", risk.max_data_age_bars, "decision bars since the last close")
    add("signal", "min_consensus", params.fusion.min_consensus, "agreement of the categories")
    add("signal", "min_confidence", params.thresholds.base.min_confidence, "confidence, before a regime's factor")
    add("signal", "valid_above", params.fusion.validation.valid_above, "mean of the three validation layers")
    add("signal", "min_target_to_cost", params.labels.min_target_to_cost, "target over round-trip cost")
    add("position", "kelly_cap", risk.kelly_cap, "one position")
    add("position", "volatility_target", risk.volatility_target, "one position's standard deviation in its life")
    for regime, limit in risk.regime_limits.items():
        add("position", f"{regime}.max_position", limit.max_position, f"one position in a {regime} market")
        add("position", f"{regime}.max_stop", limit.max_stop, "its stop, fraction of price")
    for name in BUDGETS:
        add("portfolio", f"max_{name}", getattr(risk.budgets, f"max_{name}"), "fraction of equity")
    add("portfolio", "max_open", risk.max_open, "positions")
    add("portfolio", "max_trades_per_day", risk.max_trades_per_day, "entries since 00:00 UTC")
    add("drawdown", "max_daily_loss", risk.max_daily_loss, "fraction of equity at 00:00 UTC")
    add("drawdown", "max_drawdown", risk.max_drawdown, "under the highest equity")
    for name in STAGES[1:]:
        stage = getattr(risk.stages, name)
        add("drawdown", f"stage {name}", stage.at * risk.max_drawdown, f"leaves {stage.size:g} of a size")
    for tier, size in params.tiers.size.items():
        add("model", f"tier {tier}", size, "of a size")
    for name, value in params.breakers:
        add("system", name, value, "what trips a breaker: docs/results/breakers.md")
    return rows


def _limits(account: Account, at: datetime, params: Params, found: decision_row.ExposureSnapshot) -> list[JsonObject]:
    """Return budgets from the whole account down, then tails, counts and losses; each with what is left."""
    budgets, risk, positions = params.risk.budgets, params.risk, account.open_positions(at)
    sums: dict[tuple[str, str], float] = {}
    for d in positions:
        currency = currency_of(d.symbol, risk.account_currency)
        for level, of in (("strategy", d.event or ""), ("market", currency), ("asset", d.symbol)):
            sums[level, of] = sums.get((level, of), 0.0) + account.size_of(d)
    rows = [("gross", "", found.gross, budgets.max_gross)]
    rows += [(level, of, used, getattr(budgets, f"max_{level}")) for (level, of), used in sorted(sums.items())]
    for name in account.scenarios.codes:  # of all symbols together: what moves with a new position in this one
        used = {side: account.portfolio(at, name, "", sign).correlated for side, sign in SIDES.items()}
        side = max(used, key=lambda each: np.inf if isnan(used[each]) else used[each])
        rows.append(("correlated", f"{name} {side}", used[side], budgets.max_correlated))
    rows += [
        ("es", "", found.es, budgets.max_es),
        ("stress", "", found.stress, budgets.max_stress),
        ("open_count", "", found.open_count, risk.max_open),
        ("trades_today", "", found.trades_today, risk.max_trades_per_day),
        ("daily_loss", "", abs(min(found.daily_pnl, 0.0)), risk.max_daily_loss),
        ("drawdown", "", found.drawdown, risk.max_drawdown),
    ]
    return [
        {
            "limit": name, "of": of, "used": finite_or_none(used), "at_most": most,
            "left": finite_or_none(max(most - used, 0.0)),
            "share": finite_or_none(used / most) if most else None,
        }
        for name, of, used, most in rows
    ]  # fmt: skip


def _next(
    account: Account, symbol: Symbol, side: str, at: datetime, params: Params, flat: Floats,
    breakers: tuple[str, ...], tier: int,
) -> JsonObject:  # fmt: skip
    """Return the refusals or the maximum size of a new position with a perfect signal and model."""
    closed, sign = symbol.closed, SIDES[side]
    perfect = np.full(N_SCORES, sign), np.ones(N_SCORES)
    regime, regime_source, trend = regime_now(symbol, {})
    embargo = window_at(closed.close_time, symbol.warm.events)
    row = decision_row.to_row(
        decision_row.DecisionInputs(
            direction=perfect[0], confidence=perfect[1], factor=decision_row.ONES, independence=decision_row.ONES,
            regime=regime, trend=trend, unicorn=np.nan, confluence=np.nan, phase=np.nan, event="any",
            event_direction=sign, volatility=float(closed.features[VOLATILITY]),
            atr=float(closed.features[ATR]), price=float(closed.bar[CLOSE]),
            cost_bps=symbol.target_cost_bps(params.costs), stop_cost_bps=symbol.stop_cost_bps(params.costs),
            p=1.0, p_low=1.0, miss_bps=-params.labels.stop_atr * float(closed.features[ATR]) * 1e4, abstained=None,
            tier=tier, age_bars=0.0, breakers=breakers, portfolio=account.portfolio(at, symbol.name, "", sign),
            embargo=embargo,
        )
    )  # fmt: skip
    out = np.empty(decision_kernel.OUT_WIDTH)
    code = decision_kernel.decide_row(row, flat, out)
    relevant = {TIER_CLOSED, *(bit for layer in OF_THE_ACCOUNT for bit in LAYERS[layer])}
    reasons = zip(bits_of(code), decision_row.reasons(code, row, flat, out, None, breakers, embargo), strict=True)
    refused = [text for bit, text in reasons if bit in relevant]
    if symbol.reason is not None:
        refused.insert(0, symbol.reason)
    return {
        "symbol": symbol.name,
        "side": side,
        "close": utc(closed.close_time).isoformat(),
        "refused": refused,
        "max_size": 0.0 if refused else finite_or_none(float(out[decision_kernel.CAP])),
        "capped_by": CAPS[int(out[decision_kernel.CAP_OF])] if isfinite(out[decision_kernel.CAP_OF]) else None,
        "regime": regime,
        "regime_of": regime_source,
    }


def _var(positions: Floats, account: Account, net: Floats, volatility: Floats) -> float | None:
    """Return the value at risk of all positions; None without shared scenarios, or with an unknown asset."""
    if not len(positions):
        return 0.0
    if not len(account.scenarios.filtered) or (positions[:, 1] < 0.0).any():
        return None
    returns = account.scenarios.losing_most(net, volatility)
    return finite_or_none(max(float(tail_losses(returns @ net, 1.0 - ES_LEVEL)[0]), 0.0))


def _concentration(net: Floats) -> float | None:
    """Return the Herfindahl-Hirschman index of net positions: 1 = all in one asset, 1/n = even; None without any."""
    total = float(np.abs(net).sum())
    return float(((net / total) ** 2).sum()) if total > 0.0 else None
