"""Histories in the layouts of their sources, made of one seeded walk: what a turn on a user's own file is tried with.

Prices are made up and hold no edge. Each history is written as its source writes it: sessions, clock changes, holidays
and the faults that its users meet are there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.contracts import Floats
from pipelines.data.calendars import CALENDARS, DAY
from pipelines.data.timeframes import Grid

NEW_YORK = "America/New_York"
HOLIDAYS = ("01-01", "07-04", "12-25")  # of each year, month and day in New York


@dataclass(frozen=True, slots=True)
class History:
    """Describe a file for a turn: how it is written, its symbol, and the options its README would name."""

    write: Callable[[Path], Path]
    symbol: str
    options: tuple[str, ...] = ()


def walk(grid: Grid, first: str, last: str, volatility: float, seed: int) -> pd.DataFrame:
    """Return bars of a random walk on a grid from `first` to `last` (UTC dates), holidays left out.

    Columns opened (aware UTC), open, high, low, close, volume; volatility is that of one bar, as a fraction
    """
    rng = np.random.default_rng(seed)
    span = np.array([pd.Timestamp(moment, tz="UTC").timestamp() for moment in (first, last)])
    opens = grid.opens(np.arange(*grid.closed_by(span)))
    stamps = pd.to_datetime(opens, unit="s", utc=True)
    if not grid.calendar.always_open:
        stamps = stamps[~stamps.tz_convert(NEW_YORK).strftime("%m-%d").isin(HOLIDAYS)]
    n = len(stamps)
    scale = volatility * np.exp(0.5 * np.sin(np.arange(n) / 500.0))
    close = 100.0 * np.exp(np.cumsum(rng.standard_t(5, n) * scale / 1.3))
    opened = np.r_[100.0, close[:-1]]
    reach = np.abs(rng.normal(0.0, scale / 2.0, (2, n)))
    bars = {"open": opened, "high": np.maximum(opened, close) * np.exp(reach[0])}
    bars |= {"low": np.minimum(opened, close) * np.exp(-reach[1]), "close": close}
    volume = rng.gamma(2.0, 1000.0, n).round(1) + 0.1
    prices = {name: values.round(6) for name, values in bars.items()}
    return pd.DataFrame({"opened": stamps, **prices, "volume": volume})


def us_equity_hourly(folder: Path) -> Path:
    """Write four years of hourly bars of a US share in regular hours, as Alpaca does."""
    bars = walk(Grid("1h", CALENDARS["us-equity"]), "2021-01-04", "2024-12-20", 0.006, 1)
    bars = bars.rename(columns={"opened": "timestamp"})
    return _written(bars, folder / "AAPL_1Hour.csv")


def forex_daily(folder: Path) -> Path:
    """Write nineteen years of daily forex from 17:00 to 17:00 New York, in UTC."""
    bars = walk(Grid("1d", CALENDARS["forex"]), "2006-01-04", "2024-12-20", 0.006, 2)
    bars["time"] = bars.pop("opened").dt.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
    return _written(bars[["time", "open", "high", "low", "close", "volume"]], folder / "EURUSD_D.csv")


def forex_four_hours(folder: Path) -> Path:
    """Write seven years of 4-hour forex as MetaTrader 5 exports it, in its server's time (New York + 7 hours)."""
    bars = walk(Grid("4h", CALENDARS["forex"]), "2018-01-04", "2024-12-20", 0.0025, 3)
    server = bars["opened"].dt.tz_convert(NEW_YORK).dt.tz_localize(None) + pd.Timedelta(hours=7)
    columns = {"<DATE>": server.dt.strftime("%Y.%m.%d"), "<TIME>": server.dt.strftime("%H:%M:%S")}
    columns |= {f"<{name.upper()}>": bars[name].round(5) for name in ("open", "high", "low", "close")}
    columns |= {"<TICKVOL>": bars["volume"].astype(int), "<VOL>": 0, "<SPREAD>": 12}
    path = folder / "EURUSD_H4.csv"
    pd.DataFrame(columns).to_csv(path, sep="\t", index=False, lineterminator="\r\n")
    return path


def kraken_with_holes(folder: Path) -> Path:
    """Write four months of minutes as Kraken's archive does: no header, no line for a minute without a trade (30 %)."""
    bars = walk(Grid("1m"), "2024-01-01", "2024-05-01", 0.0007, 4)
    bars = bars[np.random.default_rng(5).random(len(bars)) > 0.3]
    bars["trades"] = (bars["volume"] / 50.0).astype(int) + 1
    bars["opened"] = bars["opened"].dt.as_unit("s").astype("int64")
    path = folder / "XBTUSD_1.csv"
    bars.to_csv(path, index=False, header=False)
    return path


def aggregated_trades(folder: Path) -> Path:
    """Write two months of Binance aggTrades in which stretches of 300 rows stand twice, id and all."""
    rng = np.random.default_rng(6)
    n = 400_000
    start, length = pd.Timestamp("2024-03-01", tz="UTC").timestamp(), 61 * DAY
    times = np.sort(rng.random(n)) * length + start
    price = 40_000.0 * np.exp(np.cumsum(rng.standard_t(5, n) * 2e-4))
    last = np.cumsum(rng.integers(1, 4, n))
    table = pd.DataFrame({
        "agg_trade_id": np.arange(n) + 1, "price": price.round(2), "quantity": (rng.gamma(1.0, 0.1, n) + 1e-4).round(5),
        "first_trade_id": np.r_[1, last[:-1] + 1], "last_trade_id": last,
        "transact_time": (times * 1000).astype("int64"), "is_buyer_maker": rng.random(n) < 0.5,
    })  # fmt: skip
    parts: list[pd.DataFrame] = []
    edges: Floats = np.linspace(0, n, 21)
    for first, end in zip(edges[:-1].astype(int), edges[1:].astype(int), strict=True):
        parts += [table.iloc[first:end], table.iloc[max(end - 300, first) : end]]
    return _written(pd.concat(parts), folder / "BTCUSDT-aggTrades-2024.csv")


def _written(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV and return its path."""
    table.to_csv(path, index=False)
    return path


HISTORIES = {
    "us_equity_hourly": History(us_equity_hourly, "AAPL"),
    "forex_daily": History(forex_daily, "EUR/USD"),
    "forex_four_hours": History(forex_four_hours, "EUR/USD", ("--timezone", "America/New_York+07:00")),
    "kraken_with_holes": History(kraken_with_holes, "BTC/USD"),
    "aggregated_trades": History(aggregated_trades, "BTC/USDT"),
}
