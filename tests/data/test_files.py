import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines.data.readers.files import FileOptions, read
from pipelines.data.schemas import LAYOUT, check, to_frame, write_bars
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile

MINUTES = Grid("1m")

DATA = Path(__file__).parents[2] / "../shared/data"
TAKEN = datetime(2025, 7, 1, tzinfo=UTC)
MS_2024, US_2025 = 1_704_067_200_000, 1_735_689_600_000_000
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
    "taker_buy_volume,taker_buy_quote_volume,ignore\n"
)


def kline(start=MS_2024, step=60_000, n=3):
    line = "{},42283.58,42298.62,42261.02,42298.61,35.92724,{},1519031.6,1327,23.18766,980394.7,0\n"
    return "".join(line.format(start + i * step, start + (i + 1) * step - 1) for i in range(n))


def write(path, text):
    path.write_text(text)
    return path


def recorded(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"recorded data {name} is not on this machine")
    return path


def head(name, rows, to):
    """The first rows of a recorded file: reading the whole of it would only take longer."""
    pq.write_table(pq.ParquetFile(recorded(name)).read_row_group(0).slice(0, rows), to)
    return to


@pytest.mark.parametrize(("start", "step"), [(MS_2024, 60_000), (US_2025, 60_000_000)])
@pytest.mark.parametrize("header", ["", HEADER])
@pytest.mark.parametrize("zipped", [False, True])
def test_binance_klines_are_read_in_ms_and_us_with_and_without_header_plain_and_zipped(
    start, step, header, zipped, tmp_path
):
    path = write(tmp_path / "BTCUSDT-1m.csv", header + kline(start, step))
    if zipped:
        with zipfile.ZipFile(tmp_path / "BTCUSDT-1m.zip", "w") as archive:
            archive.write(path, path.name)
        path = tmp_path / "BTCUSDT-1m.zip"
    frame = check(read(path, TAKEN).frame)
    assert frame["open_time"].tolist() == list(
        pd.date_range(datetime.fromtimestamp(start // (step // 60), UTC), periods=3, freq="min", tz="UTC")
    )
    first = frame.iloc[0]
    assert first["known_at"] == first["open_time"] + pd.Timedelta(minutes=1)
    assert first["ingested_at"] == pd.Timestamp(TAKEN)
    assert first["open":"taker_buy_volume"].tolist() == [
        42283.58,
        42298.62,
        42261.02,
        42298.61,
        35.92724,
        1327,
        23.18766,
    ]


def test_a_csv_that_changes_from_ms_to_us_is_read_row_by_row(tmp_path):
    path = write(tmp_path / "a.csv", kline(US_2025 // 1000 - 60_000, n=1) + kline(US_2025, 60_000_000, n=2))
    assert read(path, TAKEN).frame["open_time"].diff().dropna().tolist() == [pd.Timedelta(minutes=1)] * 2


def test_recorded_minutes_of_btc_are_read_as_they_are(tmp_path):
    path = head("candles/binance_spot_btcusdt_1m_2024.parquet", 5000, tmp_path / "btc.parquet")
    frame, raw = check(read(path, TAKEN).frame), pd.read_parquet(path)
    assert (frame["open_time"] == raw["open_time"]).all()
    assert (frame["trades"] == raw["trade_count"]).all()
    assert (frame["taker_buy_volume"] == raw["taker_buy_volume_base"]).all()
    assert (frame["known_at"] - frame["open_time"] == pd.Timedelta(minutes=1)).all()


def test_candles_without_trades_and_takers_say_not_recorded():
    frame = check(read(recorded("candles/binance_spot_ethusdt_5m_to_2025h1.parquet"), TAKEN).frame)
    assert len(frame) == 114_336
    assert frame["volume"].notna().all()
    assert frame[["trades", "taker_buy_volume"]].isna().all().all()


def test_bid_and_ask_bars_become_mid_prices_with_their_half_spread():
    path = recorded("forex/oanda_xauusd_1h_to_2015h1.parquet")
    frame, raw = check(read(path, TAKEN).frame), pd.read_parquet(path)
    assert (frame["close"] == (raw["bid_close"] + raw["ask_close"]) / 2).all()
    assert (frame["half_spread"] == (raw["ask_close"] - raw["bid_close"]) / 2).all()
    spread_bps = 2e4 * frame["half_spread"] / frame["close"]
    assert (spread_bps.mean(), spread_bps.quantile(0.99)) == (
        pytest.approx(5.84, abs=0.01),
        pytest.approx(31.8, abs=0.1),
    )
    assert frame[["volume", "trades", "taker_buy_volume"]].isna().all().all()
    assert (frame["known_at"] - frame["open_time"] == pd.Timedelta(hours=1)).all()


def test_the_quotes_of_a_bid_and_ask_file_come_back_from_mid_and_half_spread(tmp_path):
    quotes = {f"{side}_{price}": [level, level + 1] for side, level in (("bid", 9.0), ("ask", 9.5))
              for price in ("open", "high", "low", "close")}  # fmt: skip
    pd.DataFrame({"open_time": [MS_2024, MS_2024 + 60_000]} | quotes).to_csv(tmp_path / "a.csv", index=False)
    frame = read(tmp_path / "a.csv", TAKEN).frame
    assert (frame["close"] - frame["half_spread"]).tolist() == quotes["bid_close"]
    assert (frame["close"] + frame["half_spread"]).tolist() == quotes["ask_close"]


def test_candles_may_name_their_half_spread(tmp_path):
    bars = {"open_time": [MS_2024, MS_2024 + 60_000]} | dict.fromkeys(("open", "high", "low", "close", "volume"), 10.0)
    pd.DataFrame(bars | {"half_spread": [0.25, np.nan]}).to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path / "a.csv", TAKEN).frame["half_spread"], [0.25, np.nan])
    pd.DataFrame(bars).to_csv(tmp_path / "b.csv", index=False)
    assert read(tmp_path / "b.csv", TAKEN).frame["half_spread"].isna().all()


def canonical(n=3):
    rows = np.tile([0.0, 10.0, 12.0, 9.0, 11.0, 5.0, 7.0, 2.0, 0.25], (n, 1))
    rows[:, 0] = MS_2024 / 1000 + 60.0 * np.arange(n)
    return to_frame(rows, MINUTES, datetime(2024, 2, 1, tzinfo=UTC))


def test_a_canonical_file_keeps_its_own_three_times(tmp_path):
    write_bars(canonical(), tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet", TAKEN).frame, canonical())
    canonical().to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "a.csv", TAKEN).frame, canonical())


def test_a_bar_that_claims_to_be_known_before_its_close_is_refused(tmp_path):
    canonical().assign(known_at=canonical()["open_time"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadTimes, match="before its bar has closed"):
        read(tmp_path / "a.parquet", TAKEN)


def test_stamps_of_another_zone_become_utc(tmp_path):
    local = canonical().assign(open_time=canonical()["open_time"].dt.tz_convert("Asia/Tokyo"))
    local.drop(columns=["known_at", "ingested_at"]).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", TAKEN).frame["open_time"].equals(canonical()["open_time"])


def test_values_are_not_checked_here(tmp_path):
    path = write(tmp_path / "a.csv", HEADER + kline().replace("42261.02", "-1") + kline(n=1).replace("42283.58", ""))
    frame = check(read(path, TAKEN).frame, LAYOUT)
    assert len(frame) == 4
    assert frame["low"][0] == -1
    assert np.isnan(frame["open"][3])


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.zip"])
def test_empty_cut_and_foreign_files_are_unreadable(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(UnreadableFile, match="no such file"):
        read(path, TAKEN)
    path.touch()
    with pytest.raises(UnreadableFile, match="empty"):
        read(path, TAKEN)
    path.write_bytes(b"open_time\n\x00\xff\xfe rubbish,,\n")
    with pytest.raises(UnreadableFile, match=name):
        read(path, TAKEN)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.zip"])
def test_a_truncated_file_is_refused_wherever_it_was_cut(name, kept, tmp_path):
    path, whole = tmp_path / name, kline(n=400)
    if name == "a.csv":
        path.write_text(whole)
    elif name == "a.parquet":
        write_bars(canonical(400), path)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.csv", whole)
    data = path.read_bytes()
    path.write_bytes(
        data[: int(kept * len(data)) + 5]
    )  # not at the end of a line: that cut is a gap, not a broken file
    with pytest.raises(UnreadableFile, match=r"cut off|malformed"):
        read(path, TAKEN)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (HEADER, UnreadableFile, "no rows"),
        (kline() + "1704067380000,1,2\n", UnreadableFile, "malformed"),
        (
            kline().replace("42298.61", "dear"),
            BadValues,
            "3 cells of column close that are not numbers.*line 1 holds 'dear'",
        ),
        ("1704067200000,1,2,3,4,5\n", BadColumns, "no header.*no column is always the highest"),
        (
            HEADER.replace(",high", ",top") + kline(),
            BadColumns,
            "open = open.*still missing: no column high; for example: rename",
        ),
        (HEADER.replace("close_time", "open") + kline(), BadColumns, "column open, it stands twice"),
        (
            HEADER + kline().replace("1704067200000", "2024-01-01 00:00:00").replace("17040672", "x"),
            BadTimes,
            "open_time.*line 3",
        ),
        (
            HEADER + kline().replace("1704067200000", ""),
            BadTimes,
            "1 cells of column open_time that are not times.*line 2",
        ),
        (HEADER + kline().replace("1704067200000", "17040672"), BadTimes, "line 2 holds '17040672'"),
        (kline(n=1), BadTimes, "give it by name"),
        (kline(step=420_000), BadTimes, "420 s apart"),
    ],
)
def test_a_bad_csv_is_refused_by_name_place_and_remedy(text, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        read(write(tmp_path / "bad.csv", text), TAKEN)
    assert "bad.csv" in str(caught.value)


def test_naive_times_are_refused_with_the_column_and_the_remedy(tmp_path):
    naive = canonical().drop(columns=["known_at", "ingested_at"])
    naive["open_time"] = naive["open_time"].dt.tz_localize(None)
    naive.to_parquet(tmp_path / "a.parquet")
    naive.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.parquet", "a.csv"):
        with pytest.raises(BadTimes, match=r"still missing: the time zone, column open_time has.*--timezone UTC"):
            read(tmp_path / name, TAKEN)
        local = read(tmp_path / name, TAKEN, FileOptions(timezone="Asia/Tokyo")).frame["open_time"]
        assert (local + pd.Timedelta(hours=9)).tolist() == canonical()["open_time"].tolist()


def test_numbers_written_as_text_are_read_and_words_are_refused(tmp_path):
    canonical().astype({"close": str}).to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet", TAKEN).frame, canonical())
    canonical().assign(close="dear").to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadValues, match="column close that are not numbers"):
        read(tmp_path / "a.parquet", TAKEN)


def test_a_volume_under_another_name_is_not_recorded(tmp_path):
    reading = read(write(tmp_path / "a.csv", HEADER.replace(",volume,", ",amount,", 1) + kline()), TAKEN)
    assert reading.frame["volume"].isna().all()
    assert "volume" in reading.read_as.not_recorded
    assert any("not read: amount" in note for note in reading.read_as.notes)


def test_one_bar_is_read_when_its_timeframe_is_given(tmp_path):
    frame = read(write(tmp_path / "a.csv", kline(n=1)), TAKEN, FileOptions(timeframe="1h")).frame
    assert frame["known_at"][0] - frame["open_time"][0] == pd.Timedelta(hours=1)
