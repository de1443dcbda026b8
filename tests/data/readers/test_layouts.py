"""Every public layout: read without an option, or with exactly the one that its bytes do not show."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from support.written_bars import TAKEN, epoch, history, ohlc, place, reading_of, same_bars, written

from pipelines.data.readers.files import FileOptions, read
from pipelines.errors import BadColumns, BadTimes, BadValues

BARS = history()
MINUTES = history(60, 60)
DAYS = history(40, 86400)
FX = history(60, 60, places=5, level=1.09)
PRICES = ("open", "high", "low", "close")


def stamp(form):
    return lambda row: [row.time.strftime(form), *ohlc(row), row.volume]


def kline(unit=1000):
    def cells(row):
        quote = round(row.volume * (row.low + row.high) / 2, 5)
        return [epoch(row, unit), *ohlc(row), row.volume, epoch(row, unit) + 3_599_999, quote, 7, row.volume, quote, 0]

    return cells


KLINE = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
NO_OPTION = {
    "Binance klines, ms, no header": (BARS, "", kline(), ",", "Binance klines"),
    "Binance klines, µs, no header": (BARS, "", kline(10**6), ",", "Binance klines"),
    "Binance klines with a header": (BARS, KLINE, kline(), ",", "Binance klines"),
    "CryptoDataDownload": (
        BARS[::-1],
        "https://www.example.org/\nunix,date,symbol,open,high,low,close,Volume BTC,Volume USD",
        lambda row: [
            epoch(row, 1000 if row.Index % 2 else 1),
            row.time.strftime("%Y-%m-%d %H:%M:%S"),
            "BTC/USD",
            *ohlc(row),
            row.volume,
            round(row.volume * row.close, 2),
        ],
        ",",
        "CryptoDataDownload file",
    ),
    "TradingView, seconds": (
        BARS,
        "time,open,high,low,close,Volume,Volume MA",
        lambda row: [epoch(row, 1), *ohlc(row), row.volume, ""],
        ",",
        "candles",
    ),
    "TradingView, ISO": (BARS, "time,open,high,low,close,Volume", stamp("%Y-%m-%dT%H:%M:%SZ"), ",", "candles"),
    "Kraken OHLCVT": (MINUTES, "", lambda row: [epoch(row, 1), *ohlc(row), row.volume, 5], ",", "Kraken OHLCVT"),
    "Kraken with vwap": (
        MINUTES,
        "",
        lambda row: [epoch(row, 1), *ohlc(row), row.close, row.volume, 5],
        ",",
        "Kraken OHLCVT",
    ),
    "Bitstamp": (
        BARS[::-1],
        "timestamp,open,high,low,close,volume",
        lambda row: [epoch(row, 1), *ohlc(row), row.volume],
        ",",
        "candles",
    ),
    "Coinbase": (
        BARS[::-1],
        "time,low,high,open,close,volume",
        lambda row: [epoch(row, 1), row.low, row.high, row.open, row.close, row.volume],
        ",",
        "candles",
    ),
    "Coinbase without a header": (
        BARS[::-1],
        "",
        lambda row: [epoch(row, 1), row.low, row.high, row.open, row.close, row.volume],
        ",",
        "candles without a header",
    ),
    "candles without a header": (
        BARS,
        "",
        lambda row: [epoch(row), *ohlc(row), row.volume],
        ",",
        "candles without a header",
    ),
    "Dukascopy, GMT": (
        BARS,
        "Gmt time,Open,High,Low,Close,Volume",
        stamp("%d.%m.%Y %H:%M:%S.000"),
        ",",
        "Dukascopy export",
    ),
    "Dukascopy, local": (
        BARS,
        "Local time,Open,High,Low,Close,Volume",
        lambda row: [
            row.time.tz_convert("Europe/Berlin").strftime("%d.%m.%Y %H:%M:%S.000 GMT%z"),
            *ohlc(row),
            row.volume,
        ],
        ",",
        "Dukascopy export",
    ),
    "Dukascopy downloader": (
        BARS,
        "timestamp,open,high,low,close,volume",
        lambda row: [epoch(row), *ohlc(row), row.volume],
        ",",
        "candles",
    ),
    "Alpaca": (
        BARS,
        "symbol,timestamp,open,high,low,close,volume,trade_count,vwap",
        lambda row: ["XYZ", row.time.isoformat(sep=" "), *ohlc(row), row.volume, 3, row.close],
        ",",
        "candles",
    ),
    "Polygon": (
        MINUTES,
        "ticker,volume,open,close,high,low,window_start,transactions",
        lambda row: ["XYZ", row.volume, row.open, row.close, row.high, row.low, epoch(row, 10**9), 3],
        ",",
        "Polygon flat file",
    ),
    "zone names": (
        BARS,
        "time,open,high,low,close,volume",
        lambda row: [
            row.time.tz_convert("America/New_York").strftime("%Y%m%d %H:%M:%S America/New_York"),
            *ohlc(row),
            row.volume,
        ],
        ",",
        "candles",
    ),
    "New York's abbreviation": (
        BARS,
        "time,open,high,low,close,volume",
        lambda row: [
            row.time.tz_convert("America/New_York").strftime("%Y-%m-%d %I:%M:%S %p EST"),
            *ohlc(row),
            row.volume,
        ],
        ",",
        "candles",
    ),
    "epoch floats": (
        BARS,
        "time,open,high,low,close,volume",
        lambda row: [f"{epoch(row, 1)}.0", *ohlc(row), row.volume],
        ",",
        "candles",
    ),
    "pandas index": (BARS, ",Open,High,Low,Close,Volume", stamp("%Y-%m-%d %H:%M:%S+00:00"), ",", "candles"),
}


@pytest.mark.parametrize("name", NO_OPTION)
def test_a_public_layout_is_read_without_an_option(name, tmp_path):
    bars, header, cells, separator, layout = NO_OPTION[name]
    reading = reading_of(written(bars, cells, header, separator), tmp_path)
    same_bars(reading.frame, bars.sort_values("time"))
    assert reading.read_as.layout == layout
    assert not reading.session_dates


ONE_OPTION = {
    "MetaTrader 5": (
        FX,
        "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
        lambda row: [row.time.strftime("%Y.%m.%d\t%H:%M:%S"), *(f"{p:.5f}" for p in ohlc(row)), 500, row.volume, 12],
        "\t",
        "MetaTrader 5 export",
    ),
    "MetaTrader 4": (
        FX,
        "",
        lambda row: [row.time.strftime("%Y.%m.%d,%H:%M"), *ohlc(row), row.volume],
        ",",
        "MetaTrader 4 export",
    ),
    "NinjaTrader": (
        FX,
        "",
        lambda row: [row.time.strftime("%Y%m%d %H%M%S"), *ohlc(row), row.volume],
        ";",
        "NinjaTrader minutes",
    ),
    "European spreadsheet": (
        BARS,
        "Datum;Eröffnung;Hoch;Tief;Schluss;Volumen",
        lambda row: [
            row.time.strftime("%d.%m.%Y %H:%M"),
            *(str(p).replace(".", ",") for p in [*ohlc(row), row.volume]),
        ],
        ";",
        "candles",
    ),
    "TradeStation": (
        BARS,
        '"Date","Time","Open","High","Low","Close","Volume"',
        lambda row: [row.time.strftime("%m/%d/%Y,%H:%M"), *ohlc(row), row.volume],
        ",",
        "candles",
    ),
    "Finam": (
        BARS,
        "<TICKER>;<PER>;<DATE>;<TIME>;<OPEN>;<HIGH>;<LOW>;<CLOSE>;<VOL>",
        lambda row: ["XYZ", 60, row.time.strftime("%Y%m%d;%H%M%S"), *ohlc(row), row.volume],
        ";",
        "Finam export",
    ),
    "compact date and time": (BARS, "date,open,high,low,close,volume", stamp("%Y%m%d%H%M"), ",", "candles"),
}


@pytest.mark.parametrize("name", ONE_OPTION)
def test_a_layout_of_local_times_asks_for_the_time_zone_and_is_read_with_it(name, tmp_path):
    bars, header, cells, separator, layout = ONE_OPTION[name]
    text = written(bars, cells, header, separator, "\r\n")
    with pytest.raises(BadTimes, match=r"saw: .*open.*; still missing: the time zone.*; for example: --timezone"):
        reading_of(text, tmp_path)
    reading = reading_of(text, tmp_path, FileOptions(timezone="-05:00"))
    same_bars(reading.frame, bars, shift_s=5 * 3600)
    assert reading.read_as.layout == layout
    assert reading.read_as.time_form.endswith("in -05:00")


def test_histdata_minutes_name_the_offset_that_histdata_documents_and_have_no_volume(tmp_path):
    text = written(FX, lambda row: [row.time.strftime("%Y%m%d %H%M%S"), *ohlc(row), 0], "", ";")
    with pytest.raises(BadTimes, match=r"separator ';', no header, HistData M1.*--timezone -05:00, which HistData"):
        reading_of(text, tmp_path)
    reading = reading_of(text, tmp_path, FileOptions(timezone="-05:00"))
    same_bars(reading.frame, FX, PRICES, shift_s=5 * 3600)
    assert "volume (0 in every row)" in reading.read_as.not_recorded
    metatrader = written(FX, lambda row: [row.time.strftime("%Y.%m.%d,%H:%M"), *ohlc(row), 0])
    with pytest.raises(BadTimes, match="--timezone -05:00"):
        reading_of(metatrader, tmp_path)


def test_metatrader_spread_is_in_points_and_its_tick_volume_is_no_amount(tmp_path):
    header = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>"
    cells = lambda row: [row.time.strftime("%Y.%m.%d\t%H:%M:%S"), *(f"{p:.5f}" for p in ohlc(row)), 500, 0, 12]  # noqa: E731
    reading = reading_of(written(FX, cells, header, "\t"), tmp_path, FileOptions(timezone="UTC"))
    np.testing.assert_allclose(reading.frame["half_spread"], 6e-5)
    assert reading.frame["volume"].isna().all()
    assert any("<TICKVOL> counts changes of the quote" in note for note in reading.read_as.notes)
    daily = written(
        DAYS,
        lambda row: [row.time.strftime("%Y.%m.%d"), *ohlc(row), 500, row.volume, 12],
        header.replace("<TIME>\t", ""),
        "\t",
    )
    assert reading_of(daily, tmp_path).session_dates


def test_a_server_that_runs_ahead_of_new_york_is_stated_as_such(tmp_path):
    text = "date,time,open,high,low,close\n" + "".join(
        f"{day},{hour:02d}:00,1,2,1,1\n" for day in ("2024.03.08", "2024.03.11") for hour in range(3)
    )
    opened = reading_of(text, tmp_path, FileOptions(timezone="America/New_York+07:00")).frame["open_time"]
    assert opened[0] == pd.Timestamp("2024-03-07T22:00Z")  # 17:00 New York in winter
    assert opened[3] == pd.Timestamp("2024-03-10T21:00Z")  # and in summer


def test_kraken_leaves_out_minutes_without_a_trade_and_a_file_with_a_header_may_say_so(tmp_path):
    sparse = MINUTES.iloc[[0, 1, 2, 5, 6, 9, 10, 11]]
    cells = lambda row: [epoch(row, 1), *ohlc(row), row.volume, 5]  # noqa: E731
    reading = reading_of(written(sparse, cells), tmp_path)
    assert (reading.read_as.no_bar, reading.read_as.venue) == ("no-trade", "kraken")
    named = written(sparse, cells, "time,open,high,low,close,volume,trades")
    assert reading_of(named, tmp_path).read_as.no_bar == "missing"
    assert reading_of(named, tmp_path, FileOptions(no_bar="no-trade")).read_as.no_bar == "no-trade"


YFINANCE = {
    "three header lines": "Price,Close,High,Low,Open,Volume\nTicker,XYZ,XYZ,XYZ,XYZ,XYZ\nDate,,,,,",
    "two header lines": "Date,Close,High,Low,Open,Volume\n,XYZ,XYZ,XYZ,XYZ,XYZ",
    "one header line": "Date,Close,High,Low,Open,Volume",
    "digits for a ticker": "Price,Close,High,Low,Open,Volume\nTicker,600519,600519,600519,600519,600519\nDate,,,,,",
}


@pytest.mark.parametrize("name", YFINANCE)
def test_yfinance_days_are_sessions_under_any_number_of_headers(name, tmp_path):
    cells = lambda row: [row.time.strftime("%Y-%m-%d"), row.close, row.high, row.low, row.open, row.volume]  # noqa: E731
    reading = reading_of(written(DAYS, cells, YFINANCE[name]), tmp_path)
    same_bars(reading.frame, DAYS)
    assert reading.session_dates
    assert reading.read_as.header_line == 1


def test_midnights_of_an_exchange_are_sessions_and_those_of_a_market_that_never_shuts_are_moments(tmp_path):
    header = "Date,Open,High,Low,Close,Volume"
    cells = lambda row: [row.time.strftime("%Y-%m-%d 00:00:00-05:00"), *ohlc(row), row.volume]  # noqa: E731
    shares = DAYS[DAYS["time"].dt.weekday < 5]
    reading = reading_of(written(shares, cells, header), tmp_path)
    same_bars(reading.frame, shares)
    assert reading.session_dates
    assert not reading_of(written(DAYS, cells, header), tmp_path).session_dates
    local = shares.assign(time=shares["time"].dt.tz_localize(None).dt.tz_localize("America/New_York")).set_index("time")
    local.to_parquet(tmp_path / "a.parquet")
    same_bars(read(tmp_path / "a.parquet", TAKEN).frame, shares)


def test_adjusted_closes_are_left_out_and_several_tickers_are_refused(tmp_path):
    cells = lambda row: [row.time.strftime("%Y-%m-%d"), row.close / 2, *ohlc(row), row.volume]  # noqa: E731
    reading = reading_of(written(DAYS, cells, "Date,Adj Close,Open,High,Low,Close,Volume"), tmp_path)
    same_bars(reading.frame, DAYS)
    assert any("not read: Adj Close" in note for note in reading.read_as.notes)
    two = "Price,Close,High,Low,Open,Volume\nTicker,AAA,AAA,AAA,BBB,BBB\nDate,,,,,"
    with pytest.raises(BadValues, match=r"ticker has 2 values .AAA 3 columns, BBB 2 columns"):
        reading_of(written(DAYS, lambda row: [row.time.strftime("%Y-%m-%d"), *ohlc(row), 5], two), tmp_path)


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d.%m.%Y", "%b %d, %Y"])
def test_investing_downloads_are_read_with_their_endings_and_thousands(form, tmp_path):
    bars = DAYS.assign(**{name: DAYS[name] * 100 for name in PRICES}).round(2)

    def cells(row):
        return [
            f'"{cell}"'
            for cell in (
                row.time.strftime(form),
                f"{row.close:,.2f}",
                f"{row.open:,.2f}",
                f"{row.high:,.2f}",
                f"{row.low:,.2f}",
                f"{row.volume:.3f}K",
                "1.23%",
            )
        ]  # noqa: E731

    text = "\ufeff" + written(bars[::-1], cells, '"Date","Price","Open","High","Low","Vol.","Change %"')
    reading = reading_of(text, tmp_path)
    same_bars(reading.frame, bars.assign(volume=(bars["volume"] * 1000).round()))
    assert reading.read_as.layout == "Investing.com download"
    assert reading.session_dates


def test_daily_dates_of_one_spelling_are_told_apart_by_their_steps_or_refused(tmp_path):
    header, cells = "Date,Open,High,Low,Close", lambda row: [row.time.strftime("%d/%m/%Y"), *ohlc(row)]
    reading = reading_of(written(DAYS.iloc[:8], cells, header), tmp_path)
    same_bars(reading.frame, DAYS.iloc[:8], PRICES)
    assert "day first" in reading.read_as.time_form
    one = BARS.iloc[:10]
    text = written(one, lambda row: [row.time.strftime("%d/%m/%Y %H:%M"), *ohlc(row)], header)
    with pytest.raises(BadTimes, match="the day or the month first"):
        reading_of(text, tmp_path, FileOptions(timezone="UTC"))
    same_bars(reading_of(text, tmp_path, FileOptions(timezone="UTC", day_first=True)).frame, one, PRICES)


def test_seconds_are_put_together_to_minutes(tmp_path):
    bars = history(180, 1)
    reading = reading_of(written(bars, kline()), tmp_path)
    assert (len(reading.frame), reading.timeframe) == (3, "1m")
    assert reading.frame["open"].tolist() == bars["open"][::60].tolist()
    assert reading.frame["high"][0] == bars["high"][:60].max()
    assert reading.frame["volume"][2] == pytest.approx(bars["volume"][120:].sum())
    assert reading.lines.tolist() == [1, 61, 121]


def test_histdata_ticks_become_mid_prices_with_their_half_spread(tmp_path):
    text = "".join(f"20240102 00{m:02d}{s:02d}250,1.1{m}00,1.1{m}02,0\n" for m in range(3) for s in (1, 31))
    reading = reading_of(text, tmp_path, FileOptions(timezone="-05:00"))
    assert reading.frame["open_time"][0] == pd.Timestamp("2024-01-02T05:00Z")
    np.testing.assert_allclose(reading.frame["close"], [1.10010, 1.11010, 1.12010])
    np.testing.assert_allclose(reading.frame["half_spread"], 1e-4)
    assert reading.read_as.layout == "HistData ticks"


def test_metatrader_ticks_carry_a_side_that_did_not_change(tmp_path):
    text = (
        "<DATE>\t<TIME>\t<BID>\t<ASK>\t<LAST>\t<VOLUME>\n"
        "2024.01.02\t00:00:00.100\t1.10\t1.12\t\t\n2024.01.02\t00:00:30.100\t\t1.14\t\t\n"
    )
    frame = reading_of(text, tmp_path, FileOptions(timezone="UTC")).frame
    assert (frame["close"][0], frame["half_spread"][0]) == (pytest.approx(1.12), pytest.approx(0.02))


def test_a_premium_index_is_no_price_and_a_negative_one_is_left_for_quality(tmp_path):
    header = "open_time,open,high,low,close,volume"
    index = BARS.assign(**{name: (BARS[name] - 100) / 1e4 for name in PRICES}, volume=0)
    with pytest.raises(BadValues, match="a premium index is no price"):
        reading_of(written(index, lambda row: [epoch(row), *ohlc(row), 0], header), tmp_path)
    crude = BARS.assign(**{name: BARS[name] - 100 for name in PRICES})
    frame = read(place(written(crude, lambda row: [epoch(row), *ohlc(row), row.volume], header), tmp_path), TAKEN).frame
    assert (frame["low"] < 0).any()


def test_a_market_that_only_rises_keeps_the_usual_order_without_a_header(tmp_path):
    text = "".join(f"{1704153600000 + 3_600_000 * i},{100 + i},{101 + i},{100 + i},{101 + i},5\n" for i in range(40))
    reading = reading_of(text, tmp_path)
    assert (reading.frame["close"][0], reading.frame["open"][1]) == (101, 101)
    assert not any("in the order" in note for note in reading.read_as.notes)


def test_swapped_names_of_prices_are_recognised(tmp_path):
    cells = lambda row: [epoch(row), row.low, row.high, row.open, row.close, row.volume]  # noqa: E731
    with pytest.raises(BadColumns, match="high holds the highest and open the lowest price"):
        reading_of(written(BARS, cells, "time,open,high,low,close,volume"), tmp_path)
    swapped = lambda row: [epoch(row), row.close, row.high, row.low, row.open, row.volume]  # noqa: E731
    with pytest.raises(BadColumns, match="exchange the names open and close"):
        reading_of(written(BARS, swapped, "time,open,high,low,close,volume"), tmp_path)
    one = written(
        BARS,
        lambda row: [
            epoch(row),
            row.open,
            *((row.low, row.high) if row.Index == 7 else (row.high, row.low)),
            row.close,
            row.volume,
        ],
        "time,open,high,low,close,volume",
    )
    assert read(place(one, tmp_path), TAKEN).frame["high"][7] == BARS["low"][7]  # one wrong row is quality's


def test_volume_in_contracts_is_replaced_by_the_base_amount_and_one_of_no_unit_is_refused(tmp_path):
    bars = BARS.assign(volume=(BARS["volume"] * 1000).round())

    def coin(row):
        return [
            epoch(row),
            *ohlc(row),
            row.volume,
            0,
            row.volume * 10 / row.close,
            7,
            row.volume / 2,
            row.volume * 5 / row.close,
            0,
        ]  # noqa: E731

    reading = reading_of(written(bars, coin, KLINE), tmp_path)
    np.testing.assert_allclose(reading.frame["volume"], bars["volume"] * 10 / bars["close"])
    np.testing.assert_allclose(reading.frame["taker_buy_volume"], bars["volume"] * 5 / bars["close"])
    assert reading.read_as.columns["volume"] == "quote_volume"
    odd = lambda row: [epoch(row), *ohlc(row), row.volume, row.Index * 3 + 1]  # noqa: E731
    with pytest.raises(BadValues, match="no amount of the base asset"):
        reading_of(written(bars, odd, "time,open,high,low,close,volume,quote_volume"), tmp_path)


def test_how_a_file_was_read_fits_a_terminal_and_json(tmp_path):
    bars, header, cells, separator, _ = NO_OPTION["CryptoDataDownload"]
    read_as = reading_of(written(bars, cells, header, separator), tmp_path).read_as
    assert max(map(len, read_as.describe(80).splitlines())) <= 80
    assert json.loads(json.dumps(read_as.to_dict()))["order"] == "descending"
    assert read_as.identity == {"symbol": "BTC/USD"}
    assert io.StringIO(read_as.describe()).readline().startswith("read as: CryptoDataDownload file of 1h, 40 rows")
