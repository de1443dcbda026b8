"""Report the account: equity, profit, drawdown, open positions and what they rest on: the answer of `/account`."""

from datetime import datetime

from pipelines.contracts import Decision, JsonObject, finite_or_none
from serving.risk.breakers import ACCOUNT_MISMATCH
from serving.state.account import Account


def account_report(account: Account, at: datetime, breakers: dict[str, str]) -> JsonObject:
    """Return the account at the close `at` as plain JSON; null = not known.

    breakers  name → why, of the tripped ones
    Fractions are of equity, which starts at 1. `unrealised` is what a position earned since its fill at the newest
    close, its entry's fee paid and the exit's costs not; null before its fill.
    """
    found = account.portfolio(at)
    positions = [_position(account, decision) for decision in account.open_positions(at)]
    known = [each["unrealised"] for each in positions]
    return {
        "source": account.source,
        "as_of": at.isoformat(),
        "equity": account.equity,
        "peak": account.peak,
        "drawdown": found.drawdown,
        "day": account.day and account.day.isoformat(),
        "daily_pnl": found.daily_pnl,
        "trades_today": account.trades_today,
        "gross": found.gross,
        "unrealised": sum(known) if None not in known else None,
        "mismatch": breakers.get(ACCOUNT_MISMATCH),
        "positions": positions,
    }


def _position(account: Account, decision: Decision) -> JsonObject:
    """Return one open position, or an order that waits for its fill: then `filled_at` is null and `entry` decided."""
    side, filled = 1.0 if decision.action == "BUY" else -1.0, account.filled.get(decision.id)
    closes = account.newest_closes(decision.symbol)
    unrealised = None
    if filled is not None and len(closes):
        moved = side * (float(closes[-1]) / filled.price - 1.0) - filled.fee_bps / 1e4
        unrealised = finite_or_none(account.size_of(decision) * moved)
    return {
        "id": decision.id,
        "symbol": decision.symbol,
        "side": decision.action,
        "size": account.size_of(decision),
        "entry": decision.entry if filled is None else finite_or_none(filled.price),
        "filled_at": None if filled is None else filled.filled_at.isoformat(),
        "fee_bps": None if filled is None else filled.fee_bps,
        "unrealised": unrealised,
        "stop": decision.stop,
        "take_profits": list(decision.take_profits),
        "expiry": decision.expiry and decision.expiry.isoformat(),
        "strategy": decision.event,
        "arm": decision.arm,
        "source": account.source,
    }
