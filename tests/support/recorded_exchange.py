"""A real HTTP server on this machine that answers as Binance, Coinbase and Hyperliquid do, from given bars.

It is reached as a gateway: ccxt puts its address before the URL it would have called, so the venue is read from that.
Any other request is listed in `strays` and answered 421.
"""

import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

HOSTS = {"api.binance.com": "binance", "api.coinbase.com": "coinbase", "api.hyperliquid.xyz": "hyperliquid"}
START = 1_704_067_200  # 2024-01-01T00:00:00Z


def made_bars(n, start=START, seed=0, price=40_000.0, step=60):
    """Return (n, 9) bars of a random walk; with as few decimals as an exchange writes."""
    rng = np.random.default_rng(seed)
    close = np.round(price + np.cumsum(rng.normal(0.0, 8.0, n)), 2)
    opened = np.r_[price, close[:-1]]
    high = np.round(np.maximum(opened, close) + rng.exponential(4.0, n), 2)
    low = np.round(np.minimum(opened, close) - rng.exponential(4.0, n), 2)
    volume = np.round(rng.exponential(20.0, n) + 0.01, 5)
    taker = np.round(volume * rng.uniform(0.1, 0.9, n), 5)
    times = start + float(step) * np.arange(n)
    trades = rng.integers(1, 900, n).astype(float)
    return np.column_stack([times, opened, high, low, close, volume, trades, taker, np.full(n, np.nan)])


@dataclass
class RecordedRequest:
    """One request: its venue, path and query, and when it came (monotonic seconds)."""

    venue: str
    path: str
    query: dict
    at: float

    @property
    def since(self):
        """Return the first open time requested, epoch seconds; None if no candles were requested."""
        if "startTime" in self.query:
            return int(self.query["startTime"]) // 1000
        return int(self.query["start"]) if "start" in self.query else None


@dataclass
class VenueScript:
    """Describe how a venue answers candle requests: bars, symbol, faults by number of the request (from 1)."""

    bars: np.ndarray
    symbol: str = "BTC/USDT"
    faults: dict = field(default_factory=dict)
    dead_after: int | None = None  # candle requests it still answers; then 503 to everything
    most: int = 1000  # candles of one answer, however many are requested
    heeds_limit: bool = True
    candles: int = 0


class RecordedExchange:
    """Serve the venues' answers. `clock` is the time of every venue: the candle that holds it is open and served."""

    def __init__(self, clock, **venues):
        self.clock, self.venues = clock, venues
        self.requests, self.strays = [], []
        exchange = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                exchange.answer(self, {})

            def do_POST(self):
                exchange.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def candle_requests(self, venue=None):
        return [request for request in self.requests if request.since is not None and venue in (None, request.venue)]

    def answer(self, handler, body):
        url = urlsplit(unquote(handler.path[1:]))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if body:
            query = {"type": body["type"], **body.get("req", {})}
        venue = HOSTS.get(url.hostname)
        script = self.venues.get(venue)
        request = RecordedRequest(venue, url.path, query, time.monotonic())
        if venue is None:
            self.strays.append(url.geturl())
            return reply(handler, 421, {"msg": "no such venue here"})
        self.requests.append(request)
        if script is None or (script.dead_after is not None and script.candles >= script.dead_after):
            return reply(handler, 503, {"msg": "down"})
        if request.since is not None:
            script.candles += 1
            fault = script.faults.get(script.candles)
            if fault is not None:
                return fault(
                    handler, lambda change=None: reply(handler, 200, self.candles(venue, script, query, change))
                )
        found = REPLIES[venue](self, script, url.path, query)
        if found is None:
            self.strays.append(url.geturl())
            return reply(handler, 421, {"msg": "not recorded"})
        return reply(handler, 200, found)

    def seen(self, script, timeframe):
        """Return closed bars, and the candle that is open now; of days only the times are true."""
        rows = script.bars[script.bars[:, 0] <= self.clock]
        if timeframe in ("1d", "ONE_DAY"):
            rows = rows[np.unique(rows[:, 0] // 86400, return_index=True)[1]].copy()
            rows[:, 0] = rows[:, 0] // 86400 * 86400
        return rows

    def candles(self, venue, script, query, change=None):
        if venue == "binance":
            rows = seen = self.seen(script, query["interval"])
            if query["symbol"] != script.symbol.replace("/", ""):
                return {"code": -1121, "msg": "Invalid symbol."}
            rows = rows[rows[:, 0] >= int(query["startTime"]) / 1000][
                : min(int(query["limit"]), script.most) if script.heeds_limit else script.most
            ]
            rows = rows if change is None else change(rows, seen)
            return [as_kline(row) for row in rows]
        if venue == "coinbase":
            rows = seen = self.seen(script, query["granularity"])
            rows = rows[(rows[:, 0] >= int(query["start"])) & (rows[:, 0] <= int(query["end"]))]
            assert len(rows) <= 350, "Coinbase refuses more than 350 candles"
            rows = rows if change is None else change(rows, seen)
            names = ("start", "open", "high", "low", "close", "volume")
            written = [[str(int(row[0])), *(repr(float(value)) for value in row[1:6])] for row in rows[::-1]]
            return {"candles": [dict(zip(names, row, strict=True)) for row in written]}
        rows = self.seen(script, query["interval"])[-5000:]
        rows = rows[(rows[:, 0] >= query["startTime"] / 1000) & (rows[:, 0] <= query["endTime"] / 1000)]
        return [
            {"t": int(row[0] * 1000), "T": int(row[0] * 1000) + 59_999, "s": "BTC", "i": "1m", "n": int(row[6])}
            | {name: repr(float(value)) for name, value in zip("ohlcv", row[1:6], strict=True)}
            for row in rows
        ]


def as_kline(row):
    o, h, low, c, v, taker = (f"{row[i]:.8f}" for i in (1, 2, 3, 4, 5, 7))
    opened = int(row[0] * 1000)
    return [opened, o, h, low, c, v, opened + 59_999, "0.00000000", int(row[6]), taker, "0.00000000", "0"]


def binance(exchange, script, path, query):
    if path == "/api/v3/time":
        return {"serverTime": int(exchange.clock * 1000)}
    if path == "/api/v3/exchangeInfo":
        base, quote = script.symbol.split("/")
        return {"timezone": "UTC", "symbols": [{
            "symbol": base + quote, "status": "TRADING", "baseAsset": base, "baseAssetPrecision": 8,
            "quoteAsset": quote, "quotePrecision": 8, "quoteAssetPrecision": 8, "orderTypes": ["LIMIT"],
            "isSpotTradingAllowed": True, "isMarginTradingAllowed": False, "permissions": ["SPOT"], "filters": [
                {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"},
                {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"},
            ],
        }]}  # fmt: skip
    return exchange.candles("binance", script, query) if path == "/api/v3/klines" else None


def coinbase(exchange, script, path, query):
    product = script.symbol.replace("/", "-")
    if path == "/v2/time":
        return {"data": {"epoch": int(exchange.clock)}}
    if path == "/api/v3/brokerage/market/products":
        if query.get("product_type") == "FUTURE":
            return {"products": [], "num_products": 0}
        base, quote = script.symbol.split("/")
        return {"num_products": 1, "products": [{
            "product_id": product, "price": "1", "base_increment": "0.00000001", "quote_increment": "0.01",
            "quote_min_size": "1", "quote_max_size": "1000000", "base_min_size": "0.0001", "base_max_size": "100",
            "status": "online", "trading_disabled": False, "product_type": "SPOT", "quote_currency_id": quote,
            "base_currency_id": base, "price_increment": "0.01", "alias_to": [],
        }]}  # fmt: skip
    if path == f"/api/v3/brokerage/market/products/{product}/candles":
        return exchange.candles("coinbase", script, query)
    return None


def hyperliquid(exchange, script, path, query):
    base = script.symbol.split("/")[0]
    if query["type"] == "exchangeStatus":
        return {"specialStatuses": None, "time": int(exchange.clock * 1000)}
    if query["type"] == "spotMetaAndAssetCtxs":
        return [{"tokens": [], "universe": []}, []]
    if query["type"] == "metaAndAssetCtxs":
        return [
            {"universe": [{"name": base, "szDecimals": 5, "maxLeverage": 40}], "collateralToken": 0},
            [{"funding": "0", "markPx": "40000", "midPx": "40000", "oraclePx": "40000", "openInterest": "1"}],
        ]
    return exchange.candles("hyperliquid", script, query) if query["type"] == "candleSnapshot" else None


REPLIES = {"binance": binance, "coinbase": coinbase, "hyperliquid": hyperliquid}


def reply(handler, status, value, **headers):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "text/html" if isinstance(value, bytes) else "application/json")
    handler.send_header("Content-Length", str(len(body)))
    for name, content in headers.items():
        handler.send_header(name.replace("_", "-"), content)
    handler.end_headers()
    handler.wfile.write(body)


# faults: each takes the handler and the function that would have answered


def too_many(seconds, status=429):
    return lambda handler, answer: reply(handler, status, {"code": -1003, "msg": "Way too many"}, Retry_After=seconds)


def broken(status=503):
    return lambda handler, answer: reply(handler, status, {"msg": "Service unavailable"})


def hang_up(handler, answer):
    """Reset the connection in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b"[[1704067200000,")
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def maintenance(handler, answer):
    reply(handler, 200, b"<html><body>Back soon</body></html>")


def nothing(handler, answer):
    answer(lambda rows, all_rows: rows[:0])


def half(handler, answer):
    answer(lambda rows, all_rows: rows[: len(rows) // 2])


def late(handler, answer):
    """Leave out the first forty candles of the page."""
    answer(lambda rows, all_rows: rows[40:])


def doubled(handler, answer):
    """Send each candle twice, and fifty from before the requested time."""

    def change(rows, all_rows):
        before = all_rows[all_rows[:, 0] < rows[0, 0]][-50:]
        return np.repeat(np.concatenate([before, rows]), 2, axis=0)

    answer(change)


def out_of_order(handler, answer):
    answer(lambda rows, all_rows: np.random.default_rng(1).permutation(rows))
