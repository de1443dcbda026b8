"""Files as users have them, through the whole of `check`: a test a case, named as its folder, with its answer."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bellwether.operations.check import check
from flows.support.data_writer import write_snapshot
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.data.readers.reading import FileOptions
from pipelines.data.schemas import to_matrix
from pipelines.data.sessions import infer_grid
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadTimes, BadValues
from pipelines.settings import load_params

CASES = Path(__file__).parents[2] / "../shared/cases"
AT = datetime(2028, 1, 1, tzinfo=UTC)  # after the last bar of any case
PARAMS = load_params()
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not on this machine")


def checked(*names, context=(), symbol=None, sessions=None, workspace=None, **options):
    return check(
        [CASES / name for name in names], symbol, [CASES / name for name in context], PARAMS, AT,
        sessions=sessions, workspace=workspace, options=FileOptions(**options),
    )  # fmt: skip


def flagged(found):
    return {one["code"]: one for one in found.flags}


def words(found):
    """Return the notes on the reading as one line."""
    return " ".join(found.read_as_text.split())


def whole(found, timeframe, rows, first):
    """Whether every bar is taken, none is missing and none stands still."""
    assert (found.timeframe, found.rows, found.first) == (timeframe, rows, f"{first}:00+00:00")
    assert (found.score, found.passed, found.quarantined) == (1.0, True, {})
    assert not any(count for name, count in found.flagged.items() if name != "shut")
    return found


def test_aggtrades_twice():
    found = whole(checked("aggtrades-twice/BTCUSDT-aggTrades-2022-09.csv"), "1m", 11, "2024-01-02T00:00")
    assert "line 302 repeats trade 5300: 300 rows whose id stands twice were left out" in words(found)
    rows = pd.read_csv(CASES / "aggtrades-twice/BTCUSDT-aggTrades-2022-09.csv", header=None).drop_duplicates(0)
    frame = read(CASES / "aggtrades-twice/BTCUSDT-aggTrades-2022-09.csv", AT).frame
    assert frame["volume"].sum() == pytest.approx(rows[2].sum(), rel=1e-12)


def test_binance_header_inside():
    found = whole(checked("binance-header-inside/BTCUSDT-1m-2022-05_and_06.csv"), "1m", 480, "2024-12-31T20:00")
    assert "line 241 repeats a header: left out" in words(found)


def test_binance_ms_then_us():
    found = whole(checked("binance-ms-then-us/BTCUSDT-1m-2024-12_and_2025-01.csv"), "1m", 480, "2024-12-31T20:00")
    assert found.last == "2025-01-01T03:59:00+00:00"
    assert "epoch ms, from line 241 on µs" in words(found)


def test_cdd_url_line():
    found = whole(checked("cdd-url-line/Bitstamp_BTCUSD_1h.csv"), "1h", 400, "2024-01-02T00:00")
    assert "header in line 2); times: epoch ms, from line 253 on s, descending" in words(found)
    assert "volume = Volume BTC" in words(found)
    assert "line 1 is no header and no row: left out" in words(found)


def test_coin_margined_contracts():
    found = whole(checked("coin-margined-contracts/BTCUSD_PERP-1m-2023-10.csv"), "1m", 600, "2024-01-02T00:00")
    assert "volume counts contracts of 100" in words(found)
    assert "in 600 of 600 rows): the base volume was read from quote_volume" in words(found)


def test_context_as_published():
    for file, name, says in (
        ("BTCUSDT-fundingRate-2024-01.csv", "funding_rate", "rates as of 8 h: 60 of 8 h"),
        ("BTCUSDT-metrics-2024-01-02.csv", "open_interest", "known at the end of its five minutes"),
        ("fng.csv", "fear_greed", "known when its day is over"),
        ("funding_8h_then_4h.csv", "funding_rate", "rates as of 8 h: 59 of 4 h, 61 of 8 h"),
    ):
        found = checked("context-as-published/bars.csv", context=[f"context-as-published/{file}"])
        whole(found, "1h", 400, "2024-01-02T00:00")
        assert f"context:{name}" in found.recorded
        assert len(found.context_read_as) == 1
        assert says in found.context_read_as[0]


def test_excel_european():
    name = "excel-european/kurse.csv"
    with pytest.raises(BadTimes, match=r"separator ';', decimal comma, header in line 1.*--timezone UTC"):
        checked(name)
    found = whole(checked(name, timezone="UTC"), "1h", 200, "2024-01-02T00:00")
    assert "decimal comma" in words(found)
    assert "DD.MM.YYYY HH:MM in UTC" in words(found)


def test_fx_daily_new_york_close():
    found = whole(checked("fx-daily-new-york-close/EURUSD_D.csv"), "1d", 900, "2023-01-01T22:00")
    assert found.sessions == "forex: Sun 17:00 to Fri 17:00 (America/New_York)"
    opens = read(CASES / "fx-daily-new-york-close/EURUSD_D.csv", AT).frame["open_time"]
    seconds = opens.astype("int64").to_numpy() / 1e6
    closes = infer_grid(seconds).closes(seconds)
    hours = pd.Series(pd.to_datetime(closes, unit="s", utc=True)).dt.tz_convert("America/New_York").dt.hour
    assert (hours == 17).all()
    assert (closes - seconds == 24 * 3600).all()  # clocks change while the market is shut


def test_gzip():
    found = whole(checked("gzip/2024-01-02.csv.gz"), "1m", 300, "2024-01-02T00:00")
    assert "open_time = window_start" in words(found)
    assert "trades = transactions" in words(found)


def test_half_hour_bars():
    half = whole(checked("half-hour-bars/ETHUSD_30.csv"), "30m", 900, "2024-01-01T00:00")
    three = whole(checked("half-hour-bars/ETHUSD_3m.csv"), "3m", 900, "2024-01-01T00:00")
    assert (half.decision_timeframe, three.decision_timeframe) == ("1h", "15m")
    bars = to_matrix(read(CASES / "half-hour-bars/ETHUSD_3m.csv", AT).frame)
    quarters = resample(bars, Grid("3m"), Grid("15m"))
    fives = bars.reshape(180, 5, -1)
    assert np.array_equal(quarters[:, 0], fives[:, 0, 0])
    assert np.array_equal(quarters[:, 1], fives[:, 0, 1])
    assert np.array_equal(quarters[:, 2], fives[:, :, 2].max(axis=1))
    assert np.array_equal(quarters[:, 3], fives[:, :, 3].min(axis=1))
    assert np.array_equal(quarters[:, 4], fives[:, -1, 4])
    assert quarters[:, 5] == pytest.approx(fives[:, :, 5].sum(axis=1))


def test_histdata_m1():
    name = "histdata-m1/DAT_ASCII_EURUSD_M1_202401.csv"
    with pytest.raises(BadTimes, match=r"separator ';', no header, HistData M1.*--timezone -05:00.*all year"):
        checked(name)
    found = whole(checked(name, timezone="-05:00"), "1m", 1500, "2024-01-02T05:00")
    assert "volume (0 in every row)" in words(found)
    assert found.recorded == []


def test_kraken_ohlcvt():
    found = whole(checked("kraken-ohlcvt/XYZUSD_1.csv"), "1m", 630, "2024-01-02T00:00")
    assert (found.no_bar, "Kraken OHLCVT" in words(found)) == ("no-trade", True)
    name = "kraken-ohlcvt/XYZUSD_1_with_header.csv"
    lost = checked(name)
    assert (lost.score, lost.passed, lost.flagged["missing"]) == (pytest.approx(0.7), False, 270)
    assert "--no-bar no-trade" in flagged(lost)["GAP"]["cause"]
    whole(checked(name, no_bar="no-trade"), "1m", 630, "2024-01-02T00:00")


def test_macos_zip():
    found = whole(checked("macos-zip/BTCUSDT-1h-2024-01.zip"), "1h", 400, "2024-01-02T00:00")
    assert found.read_as["members"] == ["BTCUSDT-1h-2024-01.zip!BTCUSDT-1h-2024-01.csv"]


def test_months_together():
    folder = "months-together"
    whole(checked(f"{folder}/BTCUSDT-1h-2024.zip"), "1h", 400, "2024-01-02T00:00")
    months = [f"{folder}/month-2-BTCUSDT-1h-2024-02.csv", f"{folder}/month-1-BTCUSDT-1h-2024-01.csv"]
    found = whole(checked(*months), "1h", 400, "2024-01-02T00:00")
    assert "the files were put in the order of their times" in words(found)
    again = checked(*months, months[0])
    assert (again.rows, again.score) == (400, 1.0)
    assert "line 1 of month-2-BTCUSDT-1h-2024-02.csv is a copy of a row of an earlier file: 200 copies" in words(again)


def test_mt5_export_bars():
    name = "mt5-export-bars/EURUSD_M15.csv"
    with pytest.raises(BadTimes, match=r"separator tab.*open = <OPEN>.*still missing: the time zone"):
        checked(name)
    found = whole(checked(name, timezone="UTC"), "15m", 900, "2024-01-02T00:00")
    assert found.recorded == ["spread"]
    athens = checked(name, timezone="Europe/Athens")
    assert athens.first == "2024-01-01T22:00:00+00:00"


def test_negative_price():
    found = checked("negative-price/CL_1h_2020-04.csv")
    assert (found.rows, found.passed, found.quarantined["NON_POSITIVE"]) == (300, False, 199)
    cause = flagged(found)["NON_POSITIVE"]["cause"]
    assert "returns are undefined here. Use an instrument above zero, or a back-adjusted series with an offset" in cause
    assert found.flagged["missing"] == 0  # set aside, not missing


def test_newest_first():
    found = whole(checked("newest-first/btcusd_1h_newest_first.csv"), "1h", 400, "2024-01-02T00:00")
    assert "the newest row came first: turned round" in words(found)


@pytest.fixture
def workspace(tmp_path):
    """Return a workspace that holds the quarter hours of a case."""
    frame = read(CASES / "next-file-of-another-timeframe/EURUSD_15m_first.csv", AT).frame
    write_snapshot(tmp_path / "data", "EUR/USD", assess(frame, Grid("15m"), AT), {"source": "files"}, ingested_at=AT)
    return tmp_path


def test_next_file_of_another_timeframe(workspace):
    first, following = (f"next-file-of-another-timeframe/{name}.csv" for name in ("EURUSD_15m_first", "EURUSD_1h_next"))
    whole(checked(first, symbol="EUR/USD", workspace=workspace), "15m", 400, "2024-01-02T00:00")
    with pytest.raises(BadTimes, match=r"this home holds EUR/USD at 15m.*the file is 1h"):
        checked(following, symbol="EUR/USD", workspace=workspace)


def test_no_volume_column():
    for file in ("eurusd-m5-bid", "same_with_our_time_name"):
        found = whole(checked(f"no-volume-column/{file}.csv"), "5m", 600, "2024-02-26T00:00")
        assert "volume" not in found.recorded
        assert "not recorded: volume" in words(found)


def test_price_cut_to_six_places():
    with pytest.raises(BadValues, match=r"distinct prices? in 900 bars, one step is 12%.*too few places \(6\)"):
        checked("price-cut-to-six-places/SHIBUSDT_1m.csv")


def test_price_of_1e_8():
    name = "price-of-1e-8/PEPE_15m.csv"
    assert whole(checked(name), "15m", 600, "2024-01-02T00:00").flags == []
    source = pd.read_csv(CASES / name, float_precision="round_trip")
    frame = read(CASES / name, AT).frame
    for column in ("open", "high", "low", "close", "volume"):
        assert (frame[column] == source[column]).all()


def test_share_split():
    for file, day in (("XYZ_1d_split_at_500", "2023-05-18"), ("XYZ_1d_split_at_150", "2022-06-02")):
        found = checked(f"share-split/{file}.csv")
        assert (found.passed, found.flagged["splits"], found.flagged["jumps"]) == (False, 1, 0)
        assert f"4-for-1 split on {day}: the price fell to 1/4 of itself and volume is" in found.blocked
        assert "give prices adjusted for splits" in found.blocked


def test_stamps_with_jitter():
    found = whole(checked("stamps-with-jitter/own_recorder_1m.csv"), "1m", 600, "2024-01-02T00:00")
    assert "593 of 600 times are off the minute by up to 89 ms (line 19): rounded to it" in words(found)


def test_tradingview_export():
    for file in ("NASDAQ_XYZ_15", "NASDAQ_XYZ_15_iso"):
        found = whole(checked(f"tradingview-export/{file}.csv"), "15m", 600, "2024-01-02T14:30")
        assert "volume = Volume" in words(found)


def test_two_tickers_in_one_file():
    with pytest.raises(BadValues, match=r"column ticker has 2 values \(AAA 585 rows, BBB 17 rows\).*cut the file"):
        checked("two-tickers-in-one-file/flat.csv")


def test_unix_seconds():
    for file, first, form in (
        ("bars_seconds", "2024-01-02T00:00", "epoch s"),
        ("bars_ns_and_ms", "2024-01-02T00:00", "epoch ms and ns, mixed"),
        ("bars_utc_word", "2024-01-02T00:00", "with offset"),
        ("bars_new_york", "2024-03-08T00:00", "with offset"),
    ):
        assert form in words(whole(checked(f"unix-seconds/{file}.csv"), "1h", 200, first))


def test_us_equity_five_weeks():
    for sessions in (None, "us-equity"):
        found = checked("us-equity-five-weeks/XYZ_15m_5w.csv", sessions=sessions)
        whole(found, "15m", 650, "2023-01-02T14:30")
        assert found.sessions == "us-equity: Mon to Fri 09:30-16:00 (America/New_York)"


def test_us_equity_hourly_from_0930():
    for sessions in (None, "us-equity"):
        found = checked("us-equity-hourly-from-0930/XYZ_60m.csv", sessions=sessions)
        whole(found, "1h", 1400, "2023-01-02T14:30")
    opens = read(CASES / "us-equity-hourly-from-0930/XYZ_60m.csv", AT).frame["open_time"]
    seconds = opens.astype("int64").to_numpy() / 1e6
    lengths = infer_grid(seconds).closes(seconds) - seconds
    assert lengths[:7].tolist() == [3600.0] * 6 + [1800.0]


def test_utf16_powershell():
    found = whole(checked("utf16-powershell/bars_utf16.csv"), "1h", 100, "2024-01-02T00:00")
    assert "UTF-16 with a byte-order mark" in words(found)


def test_volume_always_zero():
    found = whole(checked("volume-always-zero/EURUSD_M1_utc.csv"), "1m", 1500, "2024-01-02T00:00")
    assert "not recorded: volume (0 in every row)" in words(found)
    assert found.recorded == []
    assert "volume" in found.families["validator"].absent.values()


def test_weekend_flats():
    found = whole(checked("weekend-flats/EURUSD_1h_with_flats.csv"), "1h", 1080, "2024-01-01T00:00")
    assert found.flagged["shut"] == 432
    shut = flagged(found)["SHUT"]
    assert shut["rows"] == 432
    assert shut["cause"].startswith("48 h every week without a move or volume: the market is shut then (forex")
    assert shut["cause"].endswith("These bars were filled in and are left out")


def test_yfinance_three_headers():
    name = "yfinance-three-headers/XYZ.csv"
    found = whole(checked(name), "1d", 215, "2023-01-02T00:00")
    for line in (2, 3):
        assert f"line {line} is no header and no row: left out" in words(found)
    assert "dates without a time are those of sessions, not midnights" in words(found)
    prices = pd.read_csv(CASES / name, skiprows=[1, 2])
    assert (read(CASES / name, AT).frame["close"] == prices["Close"]).all()
    share = checked(name, sessions="us-equity")
    whole(share, "1d", 215, "2023-01-02T14:30")
    assert share.last == "2023-10-27T13:30:00+00:00"


def test_every_case_has_its_test():
    folders = {folder.name.replace("-", "_") for folder in CASES.iterdir() if folder.is_dir()}
    assert folders == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_case_has_its_test"
    }
