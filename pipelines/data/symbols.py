"""Names of markets: the one parser of the command line, the API and files, and what follows from a name.

Canonical forms
    BASE/QUOTE                   spot, forex and metals: BTC/USDT, EUR/USD, XAU/USD
    BASE/QUOTE:SETTLE            a perpetual: BTC/USDT:USDT; inverse, settled in its base: BTC/USD:BTC
    BASE/QUOTE:SETTLE-YYMMDD     a future of that day of delivery: BTC/USDT:USDT-240628
    TICKER                       a share: AAPL, F, BRK.B, 7203.T

How other spellings are read, in any case:
    BTC-USDT, BTC_USDT           a pair; after a dash one letter is a share class (BRK-B is BRK.B), two are refused
    BRK.B, VOD.L, EUR.USD        a share class or exchange, unless what follows the dot is a known currency: then a pair
    BTCUSDT, EURUSD, EURUSD=X    a pair where it ends in one known currency; six letters of two currencies of states or
                                 metals are always that pair
    AAPL                         one to five Latin letters are a ticker, unless they are a currency (BTC, USD) or end in
                                 one (OPUSD could be OP/USD): those are refused
    BTC-PERP                     a perpetual that names no quote is quoted and settled in USD
    BTCUSDT_PERP, BTC-USDT-SWAP, BTCUSDT.P    settled in the quote
    BTCUSD_PERP, BTC-USD-SWAP    USD after an underscore or with SWAP: inverse, as Binance and OKX write them
    BTCUSDT_240628               a dated future, settled as a perpetual of that spelling
What could be read in two ways is refused with the readings.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pipelines.errors import UnknownName
from pipelines.market_params import MarketKind

# currencies of states, and metals: six letters of two of these are one pair
FIAT = (
    "USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "NZD", "TRY", "BRL", "SEK", "NOK", "DKK", "PLN", "HUF", "CZK",
    "RON", "ILS", "ZAR", "MXN", "SGD", "HKD", "CNH", "CNY", "KRW", "INR", "THB", "IDR", "UAH", "ARS", "COP", "AED",
    "XAU", "XAG", "XPT", "XPD",
)  # fmt: skip
COINS = (
    "USDT", "USDC", "FDUSD", "TUSD", "BUSD", "PYUSD", "USDE", "USD1", "DAI", "EURC", "EURI", "BTC", "XBT", "ETH", "BNB",
)  # fmt: skip
QUOTES = FIAT + COINS  # currencies that are known as a quote where nothing separates it from its base

_NAME = r"[^\W_]"  # a letter or digit of any script
_PAIR = re.compile(rf"({_NAME}{{1,20}})/({_NAME}{{1,10}})(?::({_NAME}{{1,20}})(?:-(\d{{6}}))?)?")
_JOINED = re.compile(rf"({_NAME}{{1,20}})([-_])({_NAME}{{1,10}})")
_DOTTED = re.compile(rf"({_NAME}{{1,20}})\.({_NAME}{{1,10}})")
_PERPETUAL = re.compile(r"(.+?)([-_](?:PERP|SWAP|PERPETUAL)|\.P)")
_DATED = re.compile(r"(.+?)([-_])(?:20)?(\d{6}|\d{1,2}[A-Z]{3}\d{2})")
MAX_LENGTH = 64  # of a symbol, as of every name in a request
_CLASSES = ("A", "B", "C")  # share classes; no market is quoted in a currency of these names
_COINS_IN_NAMES = ("/BTC", "/ETH", "/BNB")  # names of coins end in these too: CBETH, WBTC
_TICKER_LETTERS = 5


@dataclass(frozen=True, slots=True)
class SymbolParts:
    """Hold the parts of a canonical symbol; None = it has no such part.

    base    of a pair, or the ticker of a share, which has neither quote nor settle
    settle  what a derivative is settled in; expiry  day of delivery, YYMMDD; None = perpetual
    """

    base: str
    quote: str | None = None
    settle: str | None = None
    expiry: str | None = None


def parse_symbol(text: str) -> str:
    """Return the canonical name of a market; one that is canonical already stays as it is.

    Raises UnknownName with the readings where there are several, and with the forms to use where there is none.
    """
    name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).upper()).strip()
    if name == unicodedata.normalize("NFKC", name.upper()):  # else no letter of it has one capital form
        for read in (_slashed, _perpetual, _dated, _yahoo, _prefixed, _dotted, _separated, _plain):
            if (found := read(name, text)) is not None and len(found) <= MAX_LENGTH:
                return found
    raise _unknown(text, "is no symbol")


def parts_of(symbol: str) -> SymbolParts:
    """Return the parts of a canonical symbol, as `parse_symbol` returns it."""
    pair = _PAIR.fullmatch(symbol)
    return SymbolParts(*pair.groups()) if pair else SymbolParts(symbol)


def perpetual_of(symbol: str) -> str | None:
    """Return the perpetual settled in the quote of a pair; None for a share or a derivative."""
    parts = parts_of(symbol)
    return f"{symbol}:{parts.quote}" if parts.quote and parts.settle is None else None


def kind_of(symbol: str) -> MarketKind | None:
    """Return the kind of market that the form of a canonical symbol shows; None for a pair, which may be of several."""
    parts = parts_of(symbol)
    if parts.quote is None:
        return "stock"
    if parts.settle is None:
        return None
    return "perpetual" if parts.expiry is None else "future"


def currency_of(symbol: str, account_currency: str) -> str:
    """Return the currency in which a position of a canonical symbol gains and loses: that of its budget.

    A derivative's is what it is settled in, a pair's its quote, a share's the account's currency.
    """
    parts = parts_of(symbol)
    return parts.settle or parts.quote or account_currency


def slug_of(symbol: str) -> str:
    """Return the name of a symbol in paths: unique, of letters, digits and `-._~` alone.

    BTC/USDT is BTC-USDT, BTC/USDT:USDT is BTC-USDT_USDT; a letter that is not Latin is ~ and six hexadecimal digits.
    """
    joined = symbol.replace("/", "-", 1).replace(":", "_", 1)
    return "".join(c if c.isascii() and (c.isalnum() or c in "-._") else f"~{ord(c):06X}" for c in joined)


# ---- readings: each returns a canonical symbol, None where the text has not its form, or raises UnknownName ----------


def _slashed(name: str, text: str) -> str | None:
    """Read BASE/QUOTE, with or without a settlement."""
    if "/" not in name:
        return None
    for sign in ("-PERP", "_PERP", "-SWAP", "_SWAP"):
        if name.endswith(sign):
            return None
    if (pair := _PAIR.fullmatch(name)) is None:
        if option := re.fullmatch(rf"{_PAIR.pattern}-.+-[CP]", name):
            raise _unknown(text, f"is an option on {option[1]}/{option[2]}; options are not traded here")
        raise _unknown(text, "is no symbol")
    base, quote, settle, expiry = pair.groups()
    if quote in _CLASSES and settle is None and re.fullmatch("[A-Z]{1,5}", base):
        raise _ambiguous(text, (f"{base}.{quote}, the share class",))
    if expiry is not None:
        _check_day(expiry, text)
    return name


def _perpetual(name: str, text: str) -> str | None:
    """Read a pair or a base followed by -PERP, _PERP, -SWAP, -PERPETUAL or .P."""
    if (found := _PERPETUAL.fullmatch(name)) is None:
        return None
    of, sign = found.groups()
    if sign.endswith("PERPETUAL"):  # Deribit's
        return _settled(f"{of}/USD", "_", None, text) if of.isalnum() else _settled(_pair(of, text), "-", None, text)
    splits = _splits(of) if of.isalnum() else ()
    if sign == ".P" and not splits:
        return None  # a share class or exchange
    if of in QUOTES or (of.isalnum() and not splits and not _fiat_pair(of)):
        return f"{of}/USD:USD" if re.fullmatch(f"{_NAME}{{1,20}}", of) else None
    if len(splits) == 1 and splits[0].endswith(_COINS_IN_NAMES):
        raise _ambiguous(text, (f"{of}/USD:USD", f"{splits[0]}:{splits[0].partition('/')[2]}"))
    return _settled(_pair(of, text), "_" if "SWAP" in sign else sign[0], None, text)


def _dated(name: str, text: str) -> str | None:
    """Read a pair followed by its day of delivery."""
    if (found := _DATED.fullmatch(name)) is None or "/" in name:
        return None
    of, sign, day = found.groups()
    if not day.isdigit():
        day = _check_day(day, text, "%d%b%y")
        if of in QUOTES or (of.isalnum() and not _splits(of)):
            raise _ambiguous(text, (f"{of}/USD:{of}-{day}", f"{of}/USDC:USDC-{day}"))
    _check_day(day, text)
    joined = "_" if "-" in of else sign  # OKX writes BTC-USD-240628, an inverse future
    return _settled(_pair(of, text), joined, day, text)


def _settled(pair: str, sign: str, day: str | None, text: str) -> str:
    """Return the derivative of a pair that names no settlement: the quote, of USD the base where `sign` is `_`."""
    base, quote = pair.split("/")
    end = f"-{day}" if day else ""
    if quote != "USD":
        return f"{pair}:{quote}{end}"
    if sign != "_":
        raise _ambiguous(text, (f"{pair}:USD{end}", f"{pair}:{base}{end}, settled in {base}"))
    return f"{pair}:{base}{end}"


def _pair(of: str, text: str) -> str:
    """Return the pair that the front part of a derivative names."""
    for read in (_slashed, _separated, _plain_pair):
        if (found := read(of, text)) is not None and parts_of(found).quote is not None:
            return found
    raise _unknown(text, "is a derivative of no known pair")


def _yahoo(name: str, text: str) -> str | None:
    """Read EURUSD=X and JPY=X, which is USD/JPY."""
    if not name.endswith("=X"):
        return None
    of = name.removesuffix("=X")
    if of in FIAT:
        return f"USD/{of}"
    if pair := _fiat_pair(of):
        return pair
    raise _unknown(text, "is no pair of known currencies")


def _prefixed(name: str, text: str) -> None:
    """Refuse NASDAQ:AAPL with what follows the exchange."""
    exchange, sign, of = name.partition(":")
    if sign and "/" not in name:
        raise _unknown(text, f"names its exchange {exchange}; without it, it", (of,))


def _dotted(name: str, text: str) -> str | None:
    """Read BRK.B, VOD.L or 7203.T, and EUR.USD where what follows the dot is a known currency."""
    if (found := _DOTTED.fullmatch(name)) is None:
        return None
    left, right = found.groups()
    if right in QUOTES:
        return f"{left}/{right}"
    if re.fullmatch("[A-Z]{1,3}", right) and re.fullmatch(r"[A-Z]{1,5}|\d{1,6}", left):
        return name
    raise _unknown(text, "is no share of an exchange", _splits(left))


def _separated(name: str, text: str) -> str | None:
    """Read BTC-USDT and BTC_USDT; one letter after a dash is a share class."""
    if (found := _JOINED.fullmatch(name)) is None:
        return None
    left, sign, right = found.groups()
    if sign == "-" and re.fullmatch("[A-Z]{1,2}", right) and re.fullmatch("[A-Z]{1,5}", left):
        if len(right) == 1:
            return f"{left}.{right}"
        raise _ambiguous(text, (f"{left}/{right}", f"{left}.{right}, a share"))
    if (pair := _fiat_pair(right)) or any(len(each.partition("/")[0]) > 2 for each in _splits(right)):
        raise _ambiguous(text, (f"{left}/{right}", *([pair] if pair else _splits(right))))  # Kraken's PF_XBTUSD
    return _slashed(f"{left}/{right}", text)


def _plain(name: str, text: str) -> str | None:
    """Read a name without any separator: a pair or a ticker."""
    if not name.isalnum():
        return None
    if re.fullmatch(f"[A-Z]{{1,{_TICKER_LETTERS}}}", name):
        if name in QUOTES:
            raise _ambiguous(text, (f"{name}/USD", f"{name}/USDT", f"{name}.US, the share"), "a currency by itself")
        if splits := _splits(name):
            raise _ambiguous(text, (*splits, f"{name}.US, the share"))
        return name
    return _plain_pair(name, text)


def _plain_pair(name: str, text: str) -> str | None:
    """Read a pair without a separator."""
    if not name.isalnum():
        return None
    if pair := _fiat_pair(name):
        return pair
    splits = _splits(name)
    if len(splits) == 1:
        return splits[0]
    if splits:
        raise _ambiguous(text, splits)
    if (coin := name.removesuffix("PERP")) != name and coin:
        raise _ambiguous(text, (f"{coin}/USD:USD", f"{coin}/USDC:USDC"), "a perpetual")
    raise _unknown(text, f"is no pair with a known quote ({', '.join(QUOTES)}), and no ticker of 1 to 5 letters")


def _fiat_pair(name: str) -> str | None:
    """Return the pair of six letters that are two currencies of states or metals."""
    return f"{name[:3]}/{name[3:]}" if len(name) == 6 and name[:3] in FIAT and name[3:] in FIAT else None


def _splits(name: str) -> tuple[str, ...]:
    """Return every pair that ends in a known quote and has a base of two characters or more."""
    return tuple(
        f"{base}/{quote}"
        for quote in QUOTES
        if (base := name.removesuffix(quote)) != name and re.fullmatch(rf"{_NAME}{{2,20}}", base)
    )


def _check_day(day: str, text: str, form: str = "%y%m%d") -> str:
    """Return a day as YYMMDD. Raises UnknownName for one that no calendar has."""
    try:
        return f"{datetime.strptime(day, form):%y%m%d}"  # noqa: DTZ007  # a day alone
    except ValueError as error:
        raise _unknown(text, f"ends in {day}, which is no day of delivery (YYMMDD)") from error


def _ambiguous(text: str, readings: Iterable[str], what: str = "") -> UnknownName:
    """Return the error for a text with several readings."""
    return _unknown(text, f"is {what}," if what else "", tuple(readings))


def _unknown(text: str, why: str, readings: tuple[str, ...] = ()) -> UnknownName:
    """Return the error for a text that is no symbol."""
    could = f" could be {' or '.join(readings)}" if readings else ""
    return UnknownName(
        f"symbol {text!r} {why}{could}".replace("  ", " ")
        + ". Write it as BASE/QUOTE, e.g. BTC/USDT; a perpetual as BTC/USDT:USDT, a share as AAPL or BRK.B."
    )
