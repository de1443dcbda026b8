"""One exchange, public market data only: the doorway to ccxt. Every failure leaves here in our own words.

What may pass (a broken connection, a time-out, 418, 425, 429, 5xx, an answer that cannot be read) is asked again,
ATTEMPTS times in all, after what Retry-After says or else twice as long each time. What will not pass (any other 4xx:
a closed region, a wrong request; a wait over MAX_WAIT_S) is VenueDown at once.
"""

import difflib
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Floats
from pipelines.errors import UnknownName, VenueDown

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 120.0  # an exchange that bans for longer is passed over, not waited for
TIMEOUT_MS = 15_000
PAGE_BARS = 300  # asked of a venue that does not say how many candles it gives at once; few give less
PASSING = (408, 418, 425, 429)  # of the 4xx, those that time may mend; 418 is Binance's ban

T = TypeVar("T")


def check_venue(name: str, timeframe: str) -> None:
    """Refuse, without a request, a venue ccxt does not know or one without bars of `timeframe`. Raises UnknownName."""
    client = _make(name, {})
    if not client.has["fetchOHLCV"]:
        raise UnknownName(f"{name} gives no bars at all. Take it off data.exchange.venues in params.yaml.")
    if timeframe not in client.timeframes:
        raise UnknownName(
            f"{name} has no bars of {timeframe!r}; it has {', '.join(client.timeframes)}. "
            "Change data.exchange.timeframe or data.exchange.venues in params.yaml."
        )


def _make(name: str, config: dict[str, Any]) -> Any:
    """A ccxt client; Any, since ccxt's types do not hold."""
    import ccxt  # 3 s and 80 MB: only for who asks an exchange

    if name not in ccxt.exchanges:
        near = difflib.get_close_matches(name, ccxt.exchanges)
        raise UnknownName(
            f"no exchange {name!r} among the {len(ccxt.exchanges)} ccxt knows"
            f"{'; near it: ' + ', '.join(near) if near else ''}. Mend data.exchange.venues in params.yaml."
        )
    return getattr(ccxt, name)(config)


class Venue:
    """Bars of one timeframe from one exchange. A context manager: it holds connections.

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
        self.name, self.timeframe, self._sleep = name, timeframe, sleep
        config: dict[str, Any] = {"enableRateLimit": True, "timeout": TIMEOUT_MS, "requests_trust_env": True}
        self._client = _make(name, config | ({"proxyUrl": gateway} if gateway else {}))
        self._client.enableLastJsonResponse = True
        self._client.has["fetchCurrencies"] = False  # prices need none of it, and it is three requests more
        self._client.rateLimit = max(self._client.rateLimit, pause_ms)
        # ccxt lets cheap requests come faster than rateLimit, up to the very budget of the address; others share it
        cost = self._client.calculate_rate_limiter_cost
        self._client.calculate_rate_limiter_cost = lambda *args: max(1.0, cost(*args))
        listed = self._client.options.get("fetchMarkets")
        if isinstance(listed, dict) and "types" in listed:  # leaves out what we never ask for, on other hosts
            listed["types"] = [kind for kind in listed["types"] if kind in ("spot", "swap")]
        self._heard: Any = None  # the last HTTP response, for its status and Retry-After
        self._client.session.hooks["response"].append(self._hear)

    def __enter__(self) -> "Venue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.session.close()

    def _hear(self, response: Any, *args: Any, **kwargs: Any) -> None:
        self._heard = response

    def market(self, symbol: str) -> str:
        """The venue's market of `symbol` (BASE/QUOTE): spot, or where there is none the perpetual settled in QUOTE.

        Raises UnknownName with the nearest pairs if it has neither, VenueDown if it does not answer.
        """
        listed = self._ask(f"its markets, for {symbol}", self._markets)
        for name in (symbol, f"{symbol}:{symbol.split('/')[1]}"):
            market = listed.get(name)
            # ccxt gives volume in contracts where a contract is not one of the base asset
            if market and (market["spot"] or (market["swap"] and market["contractSize"] == 1)):
                return name
        near = difflib.get_close_matches(symbol, [name for name, market in listed.items() if market["spot"]])
        raise UnknownName(f"{self.name} has no {symbol}{'; near it: ' + ', '.join(near) if near else ''}")

    def _markets(self) -> dict[str, Any]:
        markets: dict[str, Any] = self._client.load_markets()
        if not markets:
            raise ValueError("not one market is listed")
        return markets

    def page_bars(self, market: str) -> int:
        """How many bars it gives at once."""
        return int(self._client.feature_value(market, "fetchOHLCV", "limit") or PAGE_BARS)

    def now(self) -> float:
        """Epoch seconds by the venue's own clock; infinite where it shows none. Raises VenueDown."""
        if not self._client.has["fetchTime"]:
            return float("inf")
        return self._ask("its time", lambda: float(self._client.fetch_time()) / 1000.0)

    def has(self, timeframe: str) -> bool:
        return timeframe in self._client.timeframes

    def page(self, market: str, since: int, limit: int, timeframe: str = "") -> Floats:
        """Up to about `limit` bars from `since` (epoch seconds) on, as answered: (n, 8) in BAR_FIELDS order.

        timeframe  "" = that of this object
        Returns    perhaps also the candle that is still open, copies, bars before `since`; perhaps nothing. volume in
                   base asset; trades and taker_buy_volume NaN where the venue's candles lack them
        Raises     VenueDown
        """
        read, timeframe = RAW.get(self.name, _candles), timeframe or self.timeframe

        def candles() -> Floats:
            rows = read(self._client, market, timeframe, since * 1000, limit)
            if self._client.last_json_response is None:  # ccxt makes an empty list of a page that says "maintenance"
                raise ValueError("no JSON")
            bars = np.array(rows, dtype=np.float64).reshape(-1, BAR_WIDTH)
            bars[:, OPEN_TIME] /= 1000.0
            return bars

        return self._ask(f"{timeframe} bars of {market}", candles)

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        from ccxt import BaseError, OperationFailed

        for attempt in range(ATTEMPTS):
            self._heard, self._client.last_json_response = None, None
            try:
                return call()
            except BaseError as error:
                passing, cause, why = isinstance(error, OperationFailed), error, _short(error)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                # ccxt reads answers without checking their form: what it trips over is the answer
                passing, cause, why = True, error, f"an answer that cannot be read ({type(error).__name__}: {error})"
            status = None if self._heard is None else int(self._heard.status_code)
            if status is not None and status >= 400:
                passing = status >= 500 or status in PASSING
            wait = _retry_after(self._heard) or FIRST_WAIT_S * 2.0**attempt
            if not passing:
                raise VenueDown(f"{self.name} refuses {what}: {why}") from cause
            if wait > MAX_WAIT_S:
                raise VenueDown(
                    f"{self.name} wants {wait:,.0f} s of silence, limit {MAX_WAIT_S:.0f} s: {why}"
                ) from cause
            if attempt == ATTEMPTS - 1:
                raise VenueDown(f"{self.name} does not give {what}, asked {ATTEMPTS} times: {why}") from cause
            self._sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _short(error: Exception) -> str:
    """The kind and what was answered without the URL, which ccxt always names; of a failed connection, why."""
    text = re.sub(r"https?:\S+", "", " ".join(str(error).split()))
    if error.__cause__ is not None and not re.search(r"\d", text):  # nothing but the venue and GET or POST
        text = str(error.__cause__).rsplit(": ", 1)[-1].replace('"', "").rstrip(")")
        text += ")" * (text.count("(") - text.count(")"))
    return f"{type(error).__name__}: {text[:160].strip()}"


def _retry_after(response: Any) -> float | None:
    """Seconds that the Retry-After header asks for, in either of its forms; None if it says nothing."""
    said = "" if response is None else response.headers.get("Retry-After", "").strip()
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - parsedate_to_datetime(response.headers["Date"])).total_seconds())
    except (ValueError, TypeError, KeyError, AttributeError):  # no header, or nothing anybody could read as a time
        return None


def _candles(client: Any, market: str, timeframe: str, since_ms: int, limit: int) -> list[list[Any]]:
    """What every venue has: open time (ms), four prices, volume."""
    return [[*row[:6], None, None] for row in client.fetch_ohlcv(market, timeframe, since_ms, limit)]


def _klines(client: Any, market: str, timeframe: str, since_ms: int, limit: int) -> list[list[Any]]:
    """Binance's own candles also hold the number of trades and the volume that takers bought."""
    asked = {
        "symbol": client.market(market)["id"],
        "interval": client.timeframes[timeframe],
        "startTime": since_ms,
        "limit": limit,
    }
    return [[float(row[i]) for i in (0, 1, 2, 3, 4, 5, 8, 9)] for row in client.publicGetKlines(asked)]


RAW: dict[str, Callable[[Any, str, str, int, int], list[list[Any]]]] = {"binance": _klines, "binanceus": _klines}
