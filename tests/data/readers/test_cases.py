"""Files as users have them: each case is read as its README says, or refused with the remedy."""

from pathlib import Path

import pandas as pd
import pytest
from support.written_bars import TAKEN

from pipelines.data.readers.files import FileOptions, read
from pipelines.errors import BadTimes, BadValues

CASES = Path(__file__).parents[3] / "../shared/cases"
EST = FileOptions(timezone="-05:00")
UTC = FileOptions(timezone="UTC")
# file → options, layout, timeframe, rows, first open, and what a note, the time form or a column must say
READ = {
    "aggtrades-twice/BTCUSDT-aggTrades-2022-09.csv": (
        None,
        "Binance aggTrades",
        "1m",
        11,
        "2024-01-02T00:00",
        "300 rows whose id stands twice",
    ),
    "binance-header-inside/BTCUSDT-1m-2022-05_and_06.csv": (
        None,
        "Binance klines",
        "1m",
        480,
        "2024-12-31T20:00",
        "line 241 repeats a header",
    ),
    "binance-ms-then-us/BTCUSDT-1m-2024-12_and_2025-01.csv": (
        None,
        "Binance klines",
        "1m",
        480,
        "2024-12-31T20:00",
        "from line 241 on µs",
    ),
    "cdd-url-line/Bitstamp_BTCUSD_1h.csv": (
        None,
        "CryptoDataDownload file",
        "1h",
        400,
        "2024-01-02T00:00",
        "line 1 is no header",
    ),
    "coin-margined-contracts/BTCUSD_PERP-1m-2023-10.csv": (
        None,
        "Binance klines",
        "1m",
        600,
        "2024-01-02T00:00",
        "600 of 600 rows",
    ),
    "excel-european/kurse.csv": (UTC, "candles", "1h", 200, "2024-01-02T00:00", "DD.MM.YYYY"),
    "fx-daily-new-york-close/EURUSD_D.csv": (None, "candles", "1d", 900, "2023-01-01T22:00", "epoch ms"),
    "gzip/2024-01-02.csv.gz": (None, "Polygon flat file", "1m", 300, "2024-01-02T00:00", "epoch ns"),
    "half-hour-bars/ETHUSD_30.csv": (None, "candles", "30m", 900, "2024-01-01T00:00", "epoch ms"),
    "half-hour-bars/ETHUSD_3m.csv": (None, "candles", "3m", 900, "2024-01-01T00:00", "epoch ms"),
    "histdata-m1/DAT_ASCII_EURUSD_M1_202401.csv": (
        EST,
        "HistData M1",
        "1m",
        1500,
        "2024-01-02T05:00",
        "volume (0 in every row)",
    ),
    "kraken-ohlcvt/XYZUSD_1.csv": (None, "Kraken OHLCVT", "1m", 630, "2024-01-02T00:00", "no-trade"),
    "kraken-ohlcvt/XYZUSD_1_with_header.csv": (
        FileOptions(no_bar="no-trade"),
        "candles",
        "1m",
        630,
        "2024-01-02T00:00",
        "no-trade",
    ),
    "macos-zip/BTCUSDT-1h-2024-01.zip": (
        None,
        "Binance klines",
        "1h",
        400,
        "2024-01-02T00:00",
        "BTCUSDT-1h-2024-01.zip!BTCUSDT-1h-2024-01.csv",
    ),
    "months-together/BTCUSDT-1h-2024.zip": (
        None,
        "Binance klines",
        "1h",
        400,
        "2024-01-02T00:00",
        "BTCUSDT-1h-2024-02.csv",
    ),
    "mt5-export-bars/EURUSD_M15.csv": (UTC, "MetaTrader 5 export", "15m", 900, "2024-01-02T00:00", "one is 1e-5"),
    "negative-price/CL_1h_2020-04.csv": (None, "candles", "1h", 300, "2024-01-02T00:00", "epoch ms"),
    "newest-first/btcusd_1h_newest_first.csv": (None, "candles", "1h", 400, "2024-01-02T00:00", "turned round"),
    "next-file-of-another-timeframe/EURUSD_15m_first.csv": (
        None,
        "candles",
        "15m",
        400,
        "2024-01-02T00:00",
        "epoch ms",
    ),
    "next-file-of-another-timeframe/EURUSD_1h_next.csv": (None, "candles", "1h", 200, "2024-01-06T04:00", "epoch ms"),
    "no-volume-column/eurusd-m5-bid.csv": (None, "candles", "5m", 600, "2024-02-26T00:00", "'volume'"),
    "no-volume-column/same_with_our_time_name.csv": (None, "candles", "5m", 600, "2024-02-26T00:00", "'volume'"),
    "price-cut-to-six-places/SHIBUSDT_1m.csv": (None, "candles", "1m", 900, "2024-01-02T00:00", "epoch ms"),
    "price-of-1e-8/PEPE_15m.csv": (None, "candles", "15m", 600, "2024-01-02T00:00", "epoch ms"),
    "share-split/XYZ_1d_split_at_150.csv": (None, "candles", "1d", 700, "2022-01-03T00:00", "epoch ms"),
    "stamps-with-jitter/own_recorder_1m.csv": (
        None,
        "candles",
        "1m",
        600,
        "2024-01-02T00:00",
        "off the minute by up to 89 ms",
    ),
    "tradingview-export/NASDAQ_XYZ_15.csv": (None, "candles", "15m", 600, "2024-01-02T14:30", "epoch s"),
    "tradingview-export/NASDAQ_XYZ_15_iso.csv": (None, "candles", "15m", 600, "2024-01-02T14:30", "with offset"),
    "unix-seconds/bars_seconds.csv": (None, "candles", "1h", 200, "2024-01-02T00:00", "epoch s"),
    "unix-seconds/bars_ns_and_ms.csv": (None, "candles", "1h", 200, "2024-01-02T00:00", "epoch ms and ns"),
    "unix-seconds/bars_utc_word.csv": (None, "candles", "1h", 200, "2024-01-02T00:00", "with offset"),
    "unix-seconds/bars_new_york.csv": (None, "candles", "1h", 200, "2024-03-08T00:00", "with offset"),
    "us-equity-five-weeks/XYZ_15m_5w.csv": (None, "candles", "15m", 650, "2023-01-02T14:30", "epoch ms"),
    "us-equity-hourly-from-0930/XYZ_60m.csv": (None, "candles", "1h", 1400, "2023-01-02T14:30", "epoch ms"),
    "utf16-powershell/bars_utf16.csv": (None, "candles", "1h", 100, "2024-01-02T00:00", "UTF-16"),
    "volume-always-zero/EURUSD_M1_utc.csv": (
        None,
        "candles",
        "1m",
        1500,
        "2024-01-02T00:00",
        "volume (0 in every row)",
    ),
    "weekend-flats/EURUSD_1h_with_flats.csv": (None, "candles", "1h", 1512, "2024-01-01T00:00", "epoch ms"),
    "yfinance-three-headers/XYZ.csv": (None, "candles", "1d", 215, "2023-01-02T00:00", "those of sessions"),
}
REFUSED = {
    "excel-european/kurse.csv": (BadTimes, "separator ';', decimal comma.*still missing: the time zone.*--timezone"),
    "histdata-m1/DAT_ASCII_EURUSD_M1_202401.csv": (BadTimes, "separator ';', no header.*--timezone -05:00"),
    "mt5-export-bars/EURUSD_M15.csv": (BadTimes, "separator tab.*open = <OPEN>.*still missing: the time zone"),
    "two-tickers-in-one-file/flat.csv": (BadValues, r"column ticker has 2 values \(AAA 585 rows, BBB 17 rows\)"),
}


def case(name):
    path = CASES / name
    if not path.exists():
        pytest.skip(f"the case {name} is not on this machine")
    return path


@pytest.mark.parametrize("name", READ)
def test_a_case_is_read_as_its_readme_says(name):
    options, layout, timeframe, rows, first, says = READ[name]
    path = case(name)
    reading = read(path, TAKEN, options or FileOptions())
    assert (reading.read_as.layout, reading.timeframe, len(reading.frame)) == (layout, timeframe, rows)
    assert reading.frame["open_time"].iloc[0] == pd.Timestamp(first, tz="UTC")
    assert reading.frame["open_time"].is_monotonic_increasing
    assert says in str(reading.read_as.to_dict())


@pytest.mark.parametrize("name", REFUSED)
def test_a_case_is_refused_with_what_it_lacks(name):
    error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        read(case(name), TAKEN)


def test_a_folder_of_months_is_one_history():
    folder = case("months-together")
    reading = read([folder / "month-2-BTCUSDT-1h-2024-02.csv", folder / "month-1-BTCUSDT-1h-2024-01.csv"], TAKEN)
    assert len(reading.frame) == 400
    assert "the files were put in the order of their times" in reading.read_as.notes
    assert reading.frame["open_time"].equals(read(folder / "BTCUSDT-1h-2024.zip", TAKEN).frame["open_time"])


def test_prices_of_many_places_are_not_rounded():
    frame = read(case("price-of-1e-8/PEPE_15m.csv"), TAKEN).frame
    assert (
        frame["close"] == pd.read_csv(CASES / "price-of-1e-8/PEPE_15m.csv", float_precision="round_trip")["close"]
    ).all()
