"""One exchange, public market data only: the only user of ccxt. Every failure becomes an error of this product.

A passing failure (a broken connection, a time-out, 418, 425, 429, 5xx, an unreadable answer) is retried, ATTEMPTS times
in all, after the wait of Retry-After or else twice as long each time. A lasting one (any other 4xx: a closed region, a
wrong request; a wait over MAX_WAIT_S) is VenueDown at once.
"""

import difflib
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Floats, JsonObject
from pipelines.data.symbols import perpetual_of
from pipelines.errors import UnknownName, VenueDown

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 120.0  # an exchange that bans for longer is skipped, not waited for
TIMEOUT_MS = 15_000
PAGE_BARS = 300  # of a venue that does not document its page size; few give less
PASSING = (408, 418, 425, 429)  # of the 4xx, those that may pass with time; 418 is Binance's ban

T = TypeVar("T")


def check_venue(name: str, timeframe: str) -> None:
    """Check, without a request, that ccxt knows a venue and its bars of `timeframe`. Raises UnknownName."""
    client = _make(name, {})
    if not client.has["fetchOHLCV"]:
        raise UnknownName(f"{name} gives no bars at all. Take it off data.exchange.venues in params.yaml.")
    if timeframe not in client.timeframes:
        raise UnknownName(
            f"{name} has no bars of {timeframe!r}; it has {', '.join(client.timeframes)}. "
            "Change data.exchange.timeframe or data.exchange.venues in params.yaml."
        )


def _make(name: str, config: Mapping[str, object]) -> Any:
    """Return a ccxt client; Any, since ccxt's own types are wrong. Raises UnknownName."""
    import ccxt  # 3 s and 80 MB: only where an exchange is used

    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges)
        raise UnknownName(
            f"no exchange {name!r} among the {len(ccxt.exchanges)} ccxt knows"
            f"{'; near it: ' + ', '.join(near) if near else ''}. Correct data.exchange.venues in params.yaml."
        )
    return getattr(ccxt, name)(dict(config))


class Venue:
    """Fetch bars of one timeframe from one exchange. A context manager: it owns connections.

    gateway   put before each URL (ccxt's proxyUrl: `http://gateway/` + the encoded URL); HTTPS_PROXY holds as well
    pause_ms  at least this between two requests, if the venue's own published limit is not longer
    """

    def __init__(
        self,
        name: str,
        timeframe: str,
        gateway: str = "",
        pause_ms: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make the client. Raises UnknownName for an exchange that ccxt does not know."""
        self.name, self.timeframe, self._sleep = name, timeframe, sleep
        config: dict[str, object] = {"enableRateLimit": True, "timeout": TIMEOUT_MS, "requests_trust_env": True}
        self._client = _make(name, config | ({"proxyUrl": gateway} if gateway else {}))
        self._client.enableLastJsonResponse = True
        self._client.has["fetchCurrencies"] = False  # prices need none of it, and it is three requests more
        self._client.rateLimit = max(self._client.rateLimit, pause_ms)
        # ccxt lets cheap requests come faster than rateLimit, up to the very budget of the address; others share it
        cost = self._client.calculate_rate_limiter_cost
        self._client.calculate_rate_limiter_cost = lambda *args: max(1.0, cost(*args))
        listed = self._client.options.get("fetchMarkets")
        if (
            isinstance(listed, dict) and "types" in listed
        ):  # leaves out market types that are never used, on other hosts
            listed["types"] = [kind for kind in listed["types"] if kind in ("spot", "swap")]
        self._response: Any = None  # the last HTTP response, for its status and Retry-After
        self._client.session.hooks["response"].append(self._remember_response)

    def __enter__(self) -> "Venue":
        """Return the venue itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._client.session.close()

    def _remember_response(self, response: Any, *args: object, **kwargs: object) -> None:
        """Store the newest HTTP response (a hook of requests)."""
        self._response = response

    def market(self, symbol: str) -> str:
        """Return the venue's market of `symbol`: spot, or else the perpetual settled in its quote.

        Raises UnknownName with the nearest pairs if it has neither, VenueDown if it does not answer.
        """
        listed = self._call(f"its markets, for {symbol}", self._markets)
        for name in filter(None, (symbol, perpetual_of(symbol))):
            market = listed.get(name)
            # ccxt gives volume in contracts where a contract is not one of the base asset
            if market and (market["spot"] or (market["swap"] and market["contractSize"] == 1)):
                return name
        near = difflib.get_close_matches(symbol, [name for name, market in listed.items() if market["spot"]])
        raise UnknownName(f"{self.name} has no {symbol}{'; near it: ' + ', '.join(near) if near else ''}")

    def _markets(self) -> JsonObject:
        """Return the venue's markets by name. Raises ValueError if it lists none."""
        markets: JsonObject = self._client.load_markets()
        if not markets:
            raise ValueError("not one market is listed")
        return markets

    def page_bars(self, market: str) -> int:
        """Return how many bars the venue returns at once."""
        return int(self._client.feature_value(market, "fetchOHLCV", "limit") or PAGE_BARS)

    def now(self) -> float:
        """Return epoch seconds by the venue's own clock; infinite where it has none. Raises VenueDown."""
        if not self._client.has["fetchTime"]:
            return float("inf")
        return self._call("its time", lambda: float(self._client.fetch_time()) / 1000.0)

    def has(self, timeframe: str) -> bool:
        """Return whether the venue has bars of `timeframe`."""
        return timeframe in self._client.timeframes

    def page(self, market: str, since: int, limit: int, timeframe: str = "") -> Floats:
        """Return up to about `limit` bars from `since` (epoch seconds) on, unfiltered: (n, 9) in BAR_FIELDS order.

        timeframe  "" = that of this object
        Returns    perhaps also the candle that is still open, copies, bars before `since`; perhaps nothing. volume in
                   base asset; trades and taker_buy_volume NaN where the venue's candles lack them, half_spread always:
                   candles are of trades
        Raises     VenueDown
        """
        read, timeframe = RAW.get(self.name, _candles), timeframe or self.timeframe

        def candles() -> Floats:
            """Return one page of the venue as (n, 9). Raises ValueError if it is no JSON."""
            rows = read(self._client, market, timeframe, since * 1000, limit)
            if self._client.last_json_response is None:  # ccxt makes an empty list of a page that says "maintenance"
                raise ValueError("no JSON")
            bars = np.array(rows, dtype=np.float64).reshape(-1, BAR_WIDTH)
            bars[:, OPEN_TIME] /= 1000.0
            return bars

        return self._call(f"{timeframe} bars of {market}", candles)

    def _call(self, what: str, call: Callable[[], T]) -> T:
        """Return the result of a request, retried while its failure may pass. Raises VenueDown naming `what`."""
        from ccxt import BaseError, OperationFailed

        for attempt in range(ATTEMPTS):
            self._response, self._client.last_json_response = None, None
            try:
                return call()
            except BaseError as error:
                passing, cause, why = isinstance(error, OperationFailed), error, _short(error)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                # ccxt reads answers without checking their form, so these are faults of the answer
                passing, cause, why = True, error, f"an answer that cannot be read ({type(error).__name__}: {error})"
            status = None if self._response is None else int(self._response.status_code)
            if status is not None and status >= 400:
                passing = status >= 500 or status in PASSING
            wait = _retry_after(self._response) or FIRST_WAIT_S * 2.0**attempt
            if not passing:
                raise VenueDown(f"{self.name} refuses {what}: {why}") from cause
            if wait > MAX_WAIT_S:
                raise VenueDown(
                    f"{self.name} demands a pause of {wait:,.0f} s, limit {MAX_WAIT_S:.0f} s: {why}"
                ) from cause
            if attempt == ATTEMPTS - 1:
                raise VenueDown(f"{self.name} does not give {what} after {ATTEMPTS} attempts: {why}") from cause
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _short(error: Exception) -> str:
    """Return the kind of an error and its answer without the URL; of a failed connection, its cause."""
    text = re.sub(r"https?:\S+", "", " ".join(str(error).split()))
    if error.__cause__ is not None and not re.search(r"\d", text):  # nothing but the venue and GET or POST
        text = str(error.__cause__).rsplit(": ", 1)[-1].replace('"', "").rstrip(")")
        text += ")" * (text.count("(") - text.count(")"))
    return f"{type(error).__name__}: {text[:160].strip()}"


def _retry_after(response: Any) -> float | None:
    """Return the seconds of the Retry-After header, in either of its forms; None without one."""
    header = "" if response is None else response.headers.get("Retry-After", "").strip()
    if header.isdigit():
        return float(header)
    try:
        return max(
            0.0, (parsedate_to_datetime(header) - parsedate_to_datetime(response.headers["Date"])).total_seconds()
        )
    except (ValueError, TypeError, KeyError, AttributeError):  # no header, or one that is no time
        return None


def _candles(client: Any, market: str, timeframe: str, since_ms: int, limit: int) -> list[list[Any]]:
    """Return candles as every venue has them: open time (ms), four prices, volume."""
    return [[*row[:6], None, None, None] for row in client.fetch_ohlcv(market, timeframe, since_ms, limit)]


def _klines(client: Any, market: str, timeframe: str, since_ms: int, limit: int) -> list[list[Any]]:
    """Return Binance's own candles, which also have the number of trades and the volume that takers bought.

    Of a spot market: a perpetual is on another host, and by this request one would get the bars of its spot market.
    """
    if not client.market(market)["spot"]:
        return _candles(client, market, timeframe, since_ms, limit)
    request = {
        "symbol": client.market(market)["id"],
        "interval": client.timeframes[timeframe],
        "startTime": since_ms,
        "limit": limit,
    }
    return [[*(float(row[i]) for i in (0, 1, 2, 3, 4, 5, 8, 9)), None] for row in client.publicGetKlines(request)]


RAW: dict[str, Callable[[Any, str, str, int, int], list[list[Any]]]] = {"binance": _klines, "binanceus": _klines}
