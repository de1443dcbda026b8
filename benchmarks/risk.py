"""Time risk: one check with 100 open positions against the same figures from tables; a year of minutes."""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.decision_core import sample_rows
from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import Decision, Floats
from pipelines.data.symbols import currency_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BellwetherError
from pipelines.settings import load_params
from pipelines.tails import BURN_IN, VOLATILITY_BARS
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import flatten
from serving.risk.exposure import ES_LEVEL, AssetCloses, scenarios_of
from serving.state.account import Account

QUARTERS = Grid("15m")

SEED = 11
NOW = datetime(2024, 6, 1, tzinfo=UTC)
POSITIONS, ASSETS, CLOSES = 100, 10, 16_384  # open at once; what they are in; closing prices each asset brings
QUARTERS, HORIZON = Grid("15m"), 16  # bars a position may live
YEAR_OF_MINUTES = 527_040
SYMBOLS = tuple(f"A{i}/{'USDT' if i % 2 else 'USD'}" for i in range(ASSETS))
KINDS = ("fvg", "sweep", "order_block", "cisd", "smt")


def account_and_closes() -> tuple[Account, dict[str, Floats]]:
    """Return an account with POSITIONS open, and the closing prices its tails come from."""
    rng = np.random.default_rng(SEED)
    market = rng.normal(0, 0.002, CLOSES)
    times = NOW.timestamp() - QUARTERS.step_s * np.arange(CLOSES)[::-1]
    closes = {
        name: np.column_stack([times, 100 * np.exp(np.cumsum(market + rng.normal(0, 0.002, CLOSES)))])
        for name in SYMBOLS
    }
    assets = {name: AssetCloses(QUARTERS, prices) for name, prices in closes.items()}
    scenarios = scenarios_of(assets, HORIZON, load_params().risk.tail)
    account = Account(scenarios=scenarios, newest_closes=lambda name: closes[name][:, 1])
    for i in range(POSITIONS):
        at = NOW - timedelta(seconds=i + 1)
        side = 1 if rng.random() < 0.6 else -1
        account.add_decision(
            Decision(
                id=str(i), symbol=SYMBOLS[i % ASSETS], as_of=at, known_at=at, ingested_at=at,
                action="BUY" if side > 0 else "SELL", direction=side, confidence=0.8, entry=100.0, stop=99.0,
                take_profits=(101.5,), size=float(rng.uniform(0.001, 0.005)), expiry=NOW + timedelta(hours=4),
                edge_bps=5.0, p=0.6, regime="TRENDING", tier=1, arm="champion", event=KINDS[i % len(KINDS)],
            )
        )  # fmt: skip
    return account, closes


def check(account: Account, flat: Floats, row: Floats, out: Floats, symbol: str, kind: str, side: float) -> int:
    """Run the risk part of one decision: the account as this position finds it, then the kernel.

    Returns the refusal code.
    """
    found = account.portfolio(NOW, symbol, kind, side)
    for at in decision_kernel.ACCOUNT:
        row[at] = getattr(found, decision_kernel.ROW_FIELDS[at])
    row[decision_kernel.EVENT] = side
    return int(decision_kernel.decide_row(row, flat, out))


def from_tables(open_now: pd.DataFrame, closes: pd.DataFrame, symbol: str, kind: str, side: float) -> dict[str, float]:
    """Return the same exposures computed from tables, the usual way: nothing is carried over between two calls."""
    decay = load_params().risk.tail.decay
    weights = decay ** np.arange(VOLATILITY_BARS)
    squares = (closes / closes.shift(1) - 1).iloc[1:] ** 2
    volatility = squares.apply(
        lambda of: np.sqrt(np.convolve(of, weights)[: len(of)] / np.convolve(np.ones(len(of)), weights)[: len(of)])
    )
    volatility.iloc[: BURN_IN - 1] = np.nan
    ahead = closes.shift(-HORIZON) / closes - 1
    plain = ahead[volatility.notna().all(axis=1).reindex(ahead.index, fill_value=False)].dropna()
    plain = plain[QUARTERS.closed_by(plain.index) % (HORIZON // 4) == 0]
    filtered = plain / volatility.loc[plain.index] * volatility.iloc[-1]
    counted = (filtered,) if QUARTERS.timeframe in load_params().risk.tail.filtered_alone else (filtered, plain)
    net = open_now.groupby("symbol")["signed"].sum().reindex(plain.columns).fillna(0.0)
    size = open_now["signed"].abs()

    currency = partial(currency_of, account_currency=load_params().risk.account_currency)

    def shortfall(earned: pd.Series) -> float:
        """Return the expected shortfall of returns (n,) at ES_LEVEL, positive for a loss."""
        share = len(earned) * (1 - ES_LEVEL)
        worst = np.sort(earned.to_numpy())[: int(share) + 1]
        return float(-(worst[:-1].sum() + (share - int(share)) * worst[-1]) / share)

    unit = {name: tuple(max(shortfall(side * of[name]) for of in counted) for side in (1.0, -1.0)) for name in plain}
    together = plain.corr()[symbol] * net * side
    return {
        "gross": float(size.sum()),
        "strategy": float(size[open_now["kind"] == kind].sum()),
        "market": float(size[open_now["symbol"].map(currency) == currency(symbol)].sum()),
        "asset": float(size[open_now["symbol"] == symbol].sum()),
        "correlated": float(together.clip(lower=0).sum()),
        "es": max(shortfall((of * net).sum(axis=1)) for of in counted),
        "stress": float(sum(abs(w) * unit[name][0 if w > 0 else 1] for name, w in net.items())),
        "es_unit": unit[symbol][0 if side > 0 else 1],
    }


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    account, closes = account_and_closes()
    flat, out = flatten(load_params()), np.empty(decision_kernel.OUT_WIDTH)
    row = sample_rows(1)[0]
    table = pd.DataFrame({name: prices[:, 1] for name, prices in closes.items()}, index=closes[SYMBOLS[0]][:, 0])
    open_now = pd.DataFrame(
        {
            "symbol": [d.symbol for d in account.open_positions(NOW)],
            "kind": [d.event for d in account.open_positions(NOW)],
            "signed": account.positions(NOW)[:, 0],
        }
    )
    rng = np.random.default_rng(SEED)
    n, repeats = (200, 3) if tiny else (5_000, 25)
    took = np.empty(n)
    requests = [(SYMBOLS[i % ASSETS], KINDS[i % len(KINDS)], float(rng.choice([-1, 1]))) for i in range(n)]
    for symbol, kind, side in requests[:20]:
        check(account, flat, row, out, symbol, kind, side)
        _same(account, from_tables(open_now, table, symbol, kind, side), symbol, kind, side)
    for i, request in enumerate(requests):
        started = time.perf_counter()
        check(account, flat, row, out, *request)
        took[i] = (time.perf_counter() - started) * 1e6
    ours, usual = np.empty(repeats), np.empty(repeats)
    for i in range(repeats):
        ours[i] = timed(partial(check, account, flat, row, out, *requests[i]))
        usual[i] = timed(partial(from_tables, open_now, table, *requests[i]))
    minutes = sample_rows(YEAR_OF_MINUTES if not tiny else 5_000)
    outs, codes = np.empty((len(minutes), decision_kernel.OUT_WIDTH)), np.empty(len(minutes), np.int64)
    passes = np.array([timed(partial(decision_kernel.decide_rows, minutes, flat, outs, codes)) / 1e6 for _ in range(3)])
    return [
        Row(f"risk check, {POSITIONS} positions in {ASSETS} assets", "us", spread(took, tail=True),
            note="budgets, tails, correlation, the core; single calls"),
        pairs(f"risk check, {POSITIONS} positions", "us", ours, "recomputed from tables", usual, "same figures"),
        Row("a year of minutes through the core", "s", spread(passes), note=f"{len(minutes):,} rows, one core"),
    ]  # fmt: skip


def timed(call: Callable[[], object]) -> float:
    """Return the wall microseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6


def _same(account: Account, expected: dict[str, float], symbol: str, kind: str, side: float) -> None:
    """Raise BellwetherError where the two do not agree; correlation is shrunk in one of them only."""
    found = account.portfolio(NOW, symbol, kind, side)
    for name, value in expected.items():
        if not np.isclose(getattr(found, name), value, rtol=1e-2 if name == "correlated" else 1e-9, atol=1e-12):
            raise BellwetherError(
                f"{name}: incremental {getattr(found, name)}, from tables {value}; not the same check"
            )


if __name__ == "__main__":
    for line in measure():
        print(line)
