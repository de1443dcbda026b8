"""One parser of symbols: every spelling has one name, several readings are refused with them, paths are safe."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.symbols import FIAT, QUOTES, currency_of, kind_of, parse_symbol, parts_of, perpetual_of, slug_of
from pipelines.errors import UnknownName

READ = {
    "BTC/USDT": ["BTCUSDT", "btc-usdt", "BTC_USDT", " btc/usdt ", "ＢＴＣ/usdt"],
    "ETH/BTC": ["ETHBTC", "eth-btc"],
    "1000PEPE/USDT": ["1000PEPEUSDT"],
    "1000SHIB/USDT": ["1000SHIBUSDT", "1000shib_usdt"],
    "币安人生/USDT": ["币安人生USDT", "币安人生-usdt", "币安人生/USDT"],
    "BTC/U": ["BTC/U", "btc_u"],
    "BTC/LONGQUOTE9": ["btc/longquote9", "BTC-LONGQUOTE9"],
    # forex and metals
    "EUR/USD": ["EUR.USD", "EURUSD", "EUR/USD", "eur_usd", "EUR-USD", "EURUSD=X"],
    "USD/JPY": ["USDJPY", "JPY=X"],
    "USD/MXN": ["USDMXN", "usd.mxn"],
    "XAU/USD": ["XAUUSD", "XAU/USD", "xau.usd"],
    # derivatives
    "BTC/USDT:USDT": ["btc/usdt:usdt", "BTCUSDT_PERP", "BTCUSDT-PERP", "BTC-USDT-SWAP", "BTCUSDT.P", "BTC/USDT-PERP"],
    "BTC/USD:BTC": ["BTCUSD_PERP", "BTC-USD-SWAP", "BTC-PERPETUAL", "btc/usd:btc"],
    "BTC/USD:USD": ["BTC-PERP", "btc_perp"],
    "WBTC/USD:USD": ["WBTC-PERP"],
    "SOL/USD:USD": ["SOL-PERP"],
    "ETH/USDC:USDC": ["ETH_USDC-PERPETUAL"],
    "BTC/USDT:USDT-240628": ["BTC/USDT:USDT-240628", "BTCUSDT_240628", "BTC-USDT-240628", "BTCUSDT_20240628"],
    "BTC/USD:BTC-240628": ["BTCUSD_240628", "BTC-USD-240628"],
    # shares
    "AAPL": ["AAPL", "aapl"],
    "F": ["F", "f"],
    "GOOGL": ["googl"],
    "BRK.B": ["BRK.B", "BRK-B", "brk.b"],
    "VOD.L": ["VOD.L"],
    "7203.T": ["7203.T"],
    "BTC.US": ["btc.us"],
}


@pytest.mark.parametrize(
    ("named", "spelling"), [(name, each) for name, spellings in READ.items() for each in spellings]
)
def test_every_spelling_has_one_name(named, spelling):
    assert parse_symbol(spelling) == named
    assert parse_symbol(named) == named


@pytest.mark.parametrize(
    ("spelling", "readings"),
    [
        ("ARBUSD", ["AR/BUSD", "ARB/USD"]),
        ("BTCFDUSD", ["BTC/FDUSD", "BTCFD/USD"]),
        ("OPUSD", ["OP/USD", "OPUSD.US"]),
        ("BTC", ["BTC/USD", "BTC/USDT", "BTC.US"]),
        ("BRK/B", ["BRK.B"]),
        ("BRK_B", ["BRK.B"]),
        ("BAC-PL", ["BAC/PL", "BAC.PL"]),
        ("BTC-USD-PERP", ["BTC/USD:USD", "BTC/USD:BTC"]),
        ("BTCUSD.P", ["BTC/USD:USD", "BTC/USD:BTC"]),
        ("BTCPERP", ["BTC/USD:USD", "BTC/USDC:USDC"]),
        ("BTC-28JUN24", ["BTC/USD:BTC-240628", "BTC/USDC:USDC-240628"]),
        ("CBETH-PERP", ["CBETH/USD:USD", "CB/ETH:ETH"]),
        ("PF_XBTUSD", ["PF/XBTUSD", "XBT/USD"]),
        ("EURUSD.M", ["EUR/USD"]),
        ("NASDAQ:AAPL", ["AAPL"]),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_readings(spelling, readings):
    with pytest.raises(UnknownName, match="could be") as refused:
        parse_symbol(spelling)
    assert [each for each in readings if each not in str(refused.value)] == []


@pytest.mark.parametrize(
    "spelling",
    ["", " ", "USDT", "BTC//USDT", "BTC/USDT:", "hello world", "HELLOWORLD", "BTC/USDT/X", "../etc",
     "BTC/USDT:USDT-241399", "BTCUSDT_240631", "BTC/TOOLONGQUOTE", "AAPL\n/B", "7203", "BTC/USD:BTC-240628-60000-C",
     "x" * 400, "a" * 30 + "-PERP", "é\u0301\u0302", "-", "=X", ".P", "_PERP"],
)  # fmt: skip
def test_what_is_no_symbol_is_refused_with_the_forms_to_use(spelling):
    with pytest.raises(UnknownName, match="BASE/QUOTE"):
        parse_symbol(spelling)


LETTERS = string.ascii_letters + string.digits + "币é" + "/:-_.=~+ "
SPELLINGS = st.one_of(
    st.text(alphabet=LETTERS, max_size=16),
    st.text(max_size=12),
    st.builds(
        "".join,
        st.tuples(
            st.sampled_from(["BTC", "F", "eur", "1000SHIB", "币安人生", "BRK", "XAU", "PERP"]),
            st.sampled_from(["", "/", "-", "_", "."]),
            st.sampled_from(["", "B", "US", *QUOTES]),
            st.sampled_from(["", "-PERP", "_PERP", ".P", ":USDT", "_240628", ":BTC-240628", "=X", "-SWAP"]),
        ),
    ),
)


@given(SPELLINGS)
def test_a_name_read_once_is_its_own_name(spelling):
    try:
        named = parse_symbol(spelling)
    except UnknownName:
        return
    assert parse_symbol(named) == named
    assert parse_symbol(f" {named.lower()} ") == named
    slug = slug_of(named)
    assert re.fullmatch(r"[A-Za-z0-9._~-]+", slug)
    assert slug not in (".", "..")
    assert not slug.startswith(".")
    letters = re.sub(r"~([0-9A-F]{6})", lambda found: chr(int(found[1], 16)), slug)
    back = letters if parts_of(named).quote is None else letters.replace("-", "/", 1).replace("_", ":", 1)
    assert back == named  # so two names never share a path


@given(st.sampled_from(FIAT), st.sampled_from(FIAT), st.sampled_from(["", ".", "/", "_", "-"]))
def test_two_currencies_are_one_pair_in_every_spelling(base, quote, sign):
    assert parse_symbol(f"{base}{sign}{quote}".lower()) == f"{base}/{quote}"


def test_paths_of_pairs_are_those_of_earlier_releases():
    assert slug_of("BTC/USDT") == "BTC-USDT"
    assert slug_of("BTC/USDT:USDT-240628") == "BTC-USDT_USDT-240628"
    assert slug_of("币/USDT") == "~005E01-USDT"


@pytest.mark.parametrize(
    ("symbol", "currency", "kind", "perpetual"),
    [
        ("BTC/USDT", "USDT", None, "BTC/USDT:USDT"),
        ("BTC/USD:BTC", "BTC", "perpetual", None),
        ("BTC/USDT:USDT-240628", "USDT", "future", None),
        ("AAPL", "EUR", "stock", None),
        ("BRK.B", "EUR", "stock", None),
    ],
)
def test_what_follows_from_a_name(symbol, currency, kind, perpetual):
    assert (currency_of(symbol, "EUR"), kind_of(symbol), perpetual_of(symbol)) == (currency, kind, perpetual)
