"""Names and public layouts of columns: which column of a source is which field of a bar, a trade or a quote.

One table of aliases. A name is compared without case, blanks and signs (`<OPEN>`, "Open" and open are one name). A file
without a header is read only where its layout is a public one, known by the kinds of its cells.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.data.readers.numerals import is_number
from pipelines.data.readers.times import kind_of
from pipelines.data.schemas import PRICES
from pipelines.errors import BadColumns

Kind = Literal["bars", "sides", "trades", "quotes"]  # sides: bars of bid and of ask
NoBar = Literal["missing", "no-trade"]

KLINE = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
# field → names in the order in which they are preferred, each without case, blanks and signs
ALIASES: dict[str, tuple[str, ...]] = {
    field: tuple(names.split())
    for field, names in {
        "open_time": (
            "opentime unix unixtimestamp epoch timestamp timestampms ts windowstart time gmttime utctime "
            "timeutc datetimeutc dateutc timestamputc datetime date localtime dateandtime datetimelocal t "
            "starttime startedat startat start begin bartime candletime barstart periodstart day tradedate "
            "tradingday datum zeit datumzeit fecha data 日期 时间 дата indexlevel0 unnamed0"
        ),
        "open": (
            "open openprice o 1open opening eröffnung eroffnung eröffnungskurs eröffn ouv apertura ouverture "
            "abertura 開盤價 开盘 开盘价"
        ),
        "high": (
            "high highprice h 2high max hoch tageshoch höchst haut plushaut massimo máxima máximo maximo 最高 最高价"
        ),
        "low": "low lowprice l 3low min tief tagestief tiefst bas plusbas mínima mínimo minimo 最低 最低价",
        "close": (
            "close closeprice c 4close closelast last lastprice zuletzt dernier último ultimo schluss "
            "schlusskurs cierre chiusura clôture cloture fechamento 收盘 收盘价 price"
        ),
        "volume": (
            "volume volumebase basevolume vol v 5volume totalvolume volumefrom volumen tradevolume "
            "volumetraded shares sharesvolume stück 成交量"
        ),
        "trades": "trades tradecount count transactions numberoftrades tradescount ntrades numtrades n",
        "taker_buy_volume": "takerbuyvolume takerbuyvolumebase takerbuybaseassetvolume takerbuybasevolume takerbuybase",
        "half_spread": "halfspread",
        "quote_volume": "quotevolume quoteassetvolume volumequote volumeto volccyquote",
        "taker_buy_quote_volume": "takerbuyquotevolume takerbuyquoteassetvolume",
        "known_at": "knownat",
        "ingested_at": "ingestedat",
    }.items()
}
for _price in PRICES:
    ALIASES[_price] += (f"mid{_price}", f"mid{_price[0]}")
SIDES = tuple(f"{side}_{price}" for side in ("bid", "ask") for price in PRICES)
for _side in ("bid", "ask"):
    for _price in PRICES:
        ALIASES[f"{_side}_{_price}"] = (f"{_side}{_price}", f"{_price}{_side}", f"{_side}{_price[0]}")
TRADE: dict[str, tuple[str, ...]] = {
    "time": ("time", "transacttime", "timestamp", "tradetime", "createdtime", "createdat", "ts", "timems", "datetime",
             "date", "unix", "opentime"),
    "price": ("price", "tradeprice", "last"),
    "size": ("baseqty", "qty", "quantity", "size", "amount", "volume", "vol"),
    "maker": ("isbuyermaker", "buyermaker"),
    "side": ("side", "takerside", "direction", "tradetype"),
    "id": ("id", "aggtradeid", "tradeid", "trdmatchid", "tid"),
    "first": ("firsttradeid",),
    "last": ("lasttradeid",),
    "quote": ("quoteqty", "quotequantity"),
}  # fmt: skip
TICK: dict[str, tuple[str, ...]] = {
    "time": ("time", "timestamp", "gmttime", "localtime", "datetime", "timeutc", "date", "ts"),
    "bid": ("bid", "bidprice", "bestbid", "bestbidprice"),
    "ask": ("ask", "askprice", "bestask", "bestaskprice", "offer"),
}
IDENTITY: dict[str, tuple[str, ...]] = {
    "symbol": ("symbol", "ticker", "pair", "instrument", "instrumentname", "instid", "tic", "product", "productid",
               "actsymbol", "tradingpair", "currencypair", "code", "symbolid", "contract", "isin", "市场代码"),
    "exchange": ("exchange", "venue", "market", "exchangename"),
    "interval": ("interval", "timeframe", "per", "resolution", "granularity", "barsize"),
}  # fmt: skip
QUOTED = ("usd", "usdt", "usdc", "busd", "eur", "gbp", "jpy", "tusd", "fdusd", "dai", "quote")
SURE_ROWS = 10
BINANCE_TRADES = ("id", "price", "size", "quote", "time", "maker")
BINANCE_AGGREGATED = ("id", "price", "size", "first", "last", "time", "maker")


@dataclass(frozen=True, slots=True)
class Plan:
    """Say which column is what.

    time      one column, or a date and a time of day
    fields    canonical field → position; of trades and quotes the keys of TRADE and TICK
    identity  "symbol", "exchange" or "interval" → position: these columns must hold one value
    ordered   False: the order of the four prices is still to be shown by their values
    tick_volume, spread_points  MetaTrader's columns; None elsewhere
    """

    layout: str
    kind: Kind
    names: tuple[str, ...]
    time: tuple[int, ...]
    fields: Mapping[str, int]
    identity: Mapping[str, int] = field(default_factory=dict)
    headless: bool = False
    ordered: bool = True
    no_bar: NoBar = "missing"
    venue: str | None = None
    closes: bool = False  # the only time column names the close of its bar
    tick_volume: int | None = None
    spread_points: int | None = None
    zone_hint: str | None = None  # the offset that this layout's publisher documents

    @property
    def time_name(self) -> str:
        """Return the name of the time column, or of the two."""
        return " + ".join(self.names[i] for i in self.time)

    def used(self) -> dict[int, str]:
        """Return the positions to read: "time", "number" or "text"."""
        words = {"maker", "side", "id"} if self.kind == "trades" else {"known_at", "ingested_at"}
        kinds = {i: "text" if name in words else "number" for name, i in self.fields.items()}
        kinds |= dict.fromkeys(self.identity.values(), "text") | dict.fromkeys(self.time, "time")
        extra = [i for i in (self.tick_volume, self.spread_points) if i is not None]
        return kinds | dict.fromkeys(extra, "number")


def key_of(name: str) -> str:
    """Return a column's name without case, blanks and signs."""
    return re.sub(r"[\W_]+", "", name.strip().lower())


_KNOWN = {key for table in (ALIASES, TRADE, TICK, IDENTITY) for keys in table.values() for key in keys}
_KNOWN |= {"closetime", "ignore", "tickvol", "spread", "vwap", "adjclose", "change", "isbestmatch", "metric"}


def known_names(cells: Sequence[str]) -> int:
    """Return how many cells are names of columns known here."""
    keys = [key_of(cell) for cell in cells]
    return sum(key in _KNOWN or re.match(r"vol(ume)?\w{2,6}$", key) is not None for key in keys)


def recognise(names: Sequence[str], sample: Sequence[Sequence[str]], saw: str) -> Plan:
    """Return the plan of a table with names. Raises BadColumns.

    sample  some rows as text;  saw  what was recognised of the file before, for messages
    """
    keys: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        keys.setdefault(key_of(name), []).append(i)
    identity = _chosen(IDENTITY, keys, names, saw)
    fields = _chosen(ALIASES, keys, names, saw)
    has_prices = all(price in fields for price in PRICES)
    has_sides = any(side in fields for side in SIDES)
    if not has_prices and not has_sides:
        ticks, trades = _chosen(TICK, keys, names, saw), _chosen(TRADE, keys, names, saw)
        if {"bid", "ask"} <= set(ticks):
            return _ticks(names, sample, keys, ticks, identity, saw)
        if {"time", "price", "size"} <= set(trades) and ("maker" in trades or "side" in trades or "id" in trades):
            layout = "Binance aggTrades" if "first" in trades else "Binance trades" if "maker" in trades else "trades"
            stamp = _time_columns(names, keys, sample, TRADE["time"], saw)[0]
            fields = {name: i for name, i in trades.items() if name != "time"}
            return Plan(layout, "trades", tuple(names), stamp, fields, identity)
    return _bars(names, keys, sample, fields, identity, saw)


def _ticks(
    names: Sequence[str], sample: Sequence[Sequence[str]], keys: dict[str, list[int]], ticks: dict[str, int],
    identity: dict[str, int], saw: str,
) -> Plan:  # fmt: skip
    """Return the plan of quotes tick by tick."""
    stamp = _time_columns(names, keys, sample, TICK["time"], saw)[0]
    return Plan("quotes", "quotes", tuple(names), stamp, {"bid": ticks["bid"], "ask": ticks["ask"]}, identity)


def _bars(
    names: Sequence[str], keys: dict[str, list[int]], sample: Sequence[Sequence[str]], fields: dict[str, int],
    identity: dict[str, int], saw: str,
) -> Plan:  # fmt: skip
    """Return the plan of bars. Raises BadColumns naming what lacks."""
    sides = not all(price in fields for price in PRICES) and all(side in fields for side in SIDES)
    wanted = SIDES if sides else PRICES
    if not sides and not all(price in fields for price in PRICES) and all(f"bid_{price}" in fields for price in PRICES):
        fields |= {price: fields[f"bid_{price}"] for price in PRICES}
    time, closes = _time_columns(names, keys, sample, ALIASES["open_time"], saw, required=False)
    lacking = [name for name in wanted if name not in fields]
    if not time:
        lacking.insert(0, "open_time")
    if lacking:
        found = {name: names[i] for name, i in fields.items() if name in (*wanted, "volume")}
        if time:
            found = {"open_time": " + ".join(names[i] for i in time)} | found
        understood = ", ".join(f"{name} = {source}" for name, source in found.items()) or "none"
        raise BadColumns(
            f"{saw}, columns {_listed(names)}, of which understood: {understood}; still missing: no column "
            f"{', '.join(lacking)}; for example: rename the columns to open_time, open, high, low, close, volume."
        )
    plain = set(keys)
    layout, hint, tick_volume, points = "candles", None, None, None
    fields = {name: i for name, i in fields.items() if name != "open_time"}
    venue = None
    if tuple(names) == KLINE:
        layout, venue = "Binance klines", "binance"
    elif "tickvol" in plain or {"tickvolume", "realvolume"} <= plain:
        layout = "MetaTrader 5 export"
        tick_volume = (keys.get("tickvol") or keys["tickvolume"])[0]
        points = keys["spread"][0] if "spread" in keys else None
        if "realvolume" in keys:
            fields["volume"] = keys["realvolume"][0]
    elif {"price", "change"} <= plain and "close" not in plain:
        layout = "Investing.com download"
    elif any(name.strip().lower() == "gmt time" for name in names) or "localtime" in plain:
        layout = "Dukascopy export"
    elif "windowstart" in plain:
        layout = "Polygon flat file"
    elif "unix" in plain and any(re.fullmatch(r"volume\w{2,6}", key) for key in plain):
        layout = "CryptoDataDownload file"
    elif {"ticker", "per"} <= plain:
        layout = "Finam export"
    elif sides:
        layout = "bid/ask bars"
    if {"known_at", "ingested_at"} <= set(fields) and not sides:
        layout = "canonical bars"
    else:
        fields = {name: i for name, i in fields.items() if name not in ("known_at", "ingested_at")}
    if not sides:
        fields = {name: i for name, i in fields.items() if name not in SIDES}
    if "volume" not in fields or layout == "CryptoDataDownload file":
        fields |= _asset_volumes(names)
    return Plan(
        layout, "sides" if sides else "bars", tuple(names), time, fields, identity, venue=venue, closes=closes,
        tick_volume=tick_volume, spread_points=points, zone_hint=hint,
    )  # fmt: skip


def _asset_volumes(names: Sequence[str]) -> dict[str, int]:
    """Return base and quote volume where columns are named after assets ("Volume BTC", "Volume USD")."""
    found = {key_of(name)[6:]: i for i, name in enumerate(names) if re.fullmatch(r"volume[a-z0-9]{2,6}", key_of(name))}
    found.pop("ma", None)  # a moving average of the chart
    base = [i for asset, i in found.items() if asset not in QUOTED]
    quote = [i for asset, i in found.items() if asset in QUOTED]
    if len(base) == 1:
        return {"volume": base[0]} | ({"quote_volume": quote[0]} if len(quote) == 1 else {})
    if len(found) == 2:  # two quote currencies (Volume USDT, Volume USD): the first is the base
        first, second = sorted(found.values())
        return {"volume": first, "quote_volume": second}
    return {}


def _chosen(
    table: Mapping[str, tuple[str, ...]], keys: Mapping[str, list[int]], names: Sequence[str], saw: str
) -> dict[str, int]:
    """Return field → position, by the first alias there is. Raises BadColumns where that name stands twice."""
    found: dict[str, int] = {}
    for name, aliases in table.items():
        key = next((alias for alias in aliases if alias in keys), None)
        if key is None or (key in ("price", "last") and name == "close" and "close" in keys):
            continue
        at = keys[key]
        if len(at) > 1 and name not in ("id", "size"):
            raise BadColumns(
                f"{saw}, columns {_listed(names)}; still missing: one column {names[at[0]]}, it stands twice (columns "
                f"{at[0] + 1} and {at[1] + 1}); for example: rename or delete one of them."
            )
        found[name] = at[0]
    return found


def _time_columns(
    names: Sequence[str], keys: Mapping[str, list[int]], sample: Sequence[Sequence[str]], aliases: Sequence[str],
    saw: str, required: bool = True,
) -> tuple[tuple[int, ...], bool]:  # fmt: skip
    """Return the position of the time column, or of date and time of day, and whether it names the close of the bar.

    An instant that needs no time zone is preferred to one that does, then a time to a date.
    """
    candidates = [i for alias in aliases for i in keys.get(alias, [])[:1]]
    kinds = {i: _cell_kind(sample, i) for i in candidates}
    dates = [
        i
        for i in candidates
        if kinds[i] in ("date", "naive") and key_of(names[i]) in ("date", "datum", "dtyyyymmdd", "day")
    ]
    clocks = [i for i in candidates if key_of(names[i]) in ("time", "zeit", "timestamp") and _is_clock(sample, i)]
    if "opentime" in keys and kinds.get(keys["opentime"][0]) is not None:
        return (keys["opentime"][0],), False
    for kind in ("epoch", "aware"):
        if found := [i for i in candidates if kinds[i] == kind]:
            return (found[0],), False
    if dates and clocks and dates[0] != clocks[0]:
        return (dates[0], clocks[0]), False
    for kind in ("naive", "date"):
        if found := [i for i in candidates if kinds[i] == kind]:
            return (found[0],), False
    for key in ("closetime", "endtime", "windowend", "periodend", "barend", "end"):
        if key in keys:
            return (keys[key][0],), True
    if candidates:
        return (candidates[0],), False
    unnamed = [i for i in keys.get("", [])[:1] if _cell_kind(sample, i) is not None]  # the index of a data frame
    if unnamed:
        return (unnamed[0],), False
    if required:
        raise BadColumns(
            f"{saw}, columns {_listed(names)}; still missing: no column of times; for example: name it open_time."
        )
    return (), False


def _cell_kind(sample: Sequence[Sequence[str]], i: int) -> str | None:
    """Return how most cells of a column hold a time."""
    kinds = Counter(kind_of(row[i]) for row in sample[:40] if i < len(row))
    return kinds.most_common(1)[0][0] if kinds else None


def _is_clock(sample: Sequence[Sequence[str]], i: int) -> bool:
    """Return whether a column holds times of day, also as digits (93000)."""
    cells = [row[i].strip() for row in sample[:40] if i < len(row)]
    return bool(cells) and all(kind_of(cell) == "clock" or (cell.isdigit() and len(cell) <= 6) for cell in cells)


def headless(width: int, sample: Sequence[Sequence[str]], separator: str, saw: str) -> Plan:
    """Return the plan of a table without names, by its public layout. Raises BadColumns where it is none."""
    rows = [row for row in sample if len(row) == width]
    first = rows[0] if rows else []
    kinds = [_cell_kind(rows, i) for i in range(width)]
    numbers = [2 * sum(is_number(row[i]) for row in rows) > len(rows) for i in range(width)]  # a few cells may be wrong
    flags = [i for i in range(width) if first and first[i].strip().lower() in ("true", "false")]
    unnamed = tuple(f"column {i + 1}" for i in range(width))

    def plan(layout: str, names: Sequence[str], time: tuple[int, ...], venue: str | None = None) -> Plan:
        fields = {name: i for i, name in enumerate(names) if name in ALIASES and i not in time}
        return Plan(layout, "bars", tuple(names), time, fields, headless=True, ordered=False, venue=venue)

    if width == len(KLINE) and kinds[0] == "epoch" and kinds[6] == "epoch":
        made = plan("Binance klines", KLINE, (0,), "binance")
        return replace(made, ordered=True, fields={**made.fields, "trades": KLINE.index("count")})
    if flags and (at := flags[0]) in (5, 6) and kinds[at - 1] == "epoch":
        layout = BINANCE_AGGREGATED if at == 6 else BINANCE_TRADES
        names = (*layout, "is_best_match")[:width]
        fields = {name: i for i, name in enumerate(names) if name in TRADE and name != "time"}
        kind = "Binance aggTrades" if at == 6 else "Binance trades"
        return Plan(kind, "trades", (*names, *unnamed[len(names) :]), (at - 1,), fields, headless=True, venue="binance")
    if kinds[:1] == ["epoch"] and all(numbers):
        # Kraken's and Bitcoincharts' archives of trades; a few rows of three cells may be the rest of anything
        if width == 3 and len(rows) >= SURE_ROWS:
            return Plan(
                "trades without a header",
                "trades",
                ("time", "price", "size"),
                (0,),
                {"price": 1, "size": 2},
                headless=True,
            )
        if width == 7 and all(row[6].strip().isdigit() for row in rows):
            names = ("time", *PRICES, "volume", "trades")
            return replace(plan("Kraken OHLCVT", names, (0,), "kraken"), no_bar="no-trade")
        if width == 8 and all(row[7].strip().isdigit() for row in rows):
            names = ("time", *PRICES, "vwap", "volume", "trades")
            return replace(plan("Kraken OHLCVT", names, (0,), "kraken"), no_bar="no-trade")
        if width in (5, 6):
            return plan("candles without a header", ("time", *PRICES, "volume")[:width], (0,))
    if kinds[:1] in (["naive"], ["aware"], ["date"]) and all(numbers[1:]):
        histdata = separator == ";" and kinds[0] == "naive" and re.fullmatch(r"\d{8} \d{6}", first[0].strip())
        if width == 4 and re.fullmatch(r"\d{8} \d{9}", first[0].strip()):
            names = ("time", "bid", "ask", "volume")
            return Plan(
                "HistData ticks", "quotes", names, (0,), {"bid": 1, "ask": 2}, headless=True, zone_hint="-05:00"
            )
        if width in (5, 6) and not (width > 2 and kinds[1] == "clock"):
            names = ("time", *PRICES, "volume")[:width]
            if histdata and width == 6:
                zero = all(not row[5].strip(" 0.") for row in rows)
                made = plan("HistData M1" if zero else "NinjaTrader minutes", names, (0,))
                return replace(made, zone_hint="-05:00" if zero else None)
            return plan("candles without a header", names, (0,))
    if width in (6, 7) and kinds[0] == "date" and kinds[1] == "clock" and all(numbers[2:]):
        names = ("date", "time", *PRICES, "volume")[:width]
        zero = width == 7 and all(not row[6].strip(" 0.") for row in rows)
        kind = "MetaTrader 4 export" if "." in first[0] else "candles without a header"
        return replace(plan(kind, names, (0, 1)), zone_hint="-05:00" if zero else None)
    cells = ", ".join(first[:6]) + (" …" if width > 6 else "")
    raise BadColumns(
        f"{saw}, {width} columns and no header ({cells}); still missing: names, and this is no public layout; for "
        "example: add a first line such as open_time,open,high,low,close,volume."
    )


def _listed(names: Sequence[str]) -> str:
    """Return column names for a message."""
    shown = [name.strip()[:30] or "(no name)" for name in names[:16]]
    return ", ".join(shown) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
