"""Archives, folders, several files, Parquet and Feather; what a time stamps and which timeframe is stated."""

import decimal
import gzip
import zipfile

import pandas as pd
import pytest
from support.written_bars import TAKEN, epoch, history, ohlc, place, reading_of, same_bars, written

from pipelines.data.readers.files import FileOptions, read
from pipelines.errors import BadTimes, BadValues, InputError

BARS = history()


def halves(tmp_path, overlap=4):
    header, cells = "time,open,high,low,close,volume", lambda row: [epoch(row), *ohlc(row), row.volume]
    return written(BARS.iloc[:20], cells, header), written(BARS.iloc[20 - overlap :], cells, header)


def test_a_zip_a_folder_and_repeated_paths_are_one_history(tmp_path):
    first, second = halves(tmp_path)
    folder = tmp_path / "months"
    (folder / "deep").mkdir(parents=True)
    place(first, folder, "1.csv")
    place(second, folder / "deep", "2.csv")
    place("hidden", folder, ".DS_Store")
    place("# no data", folder, "README.md")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inner/2.csv", second)
        archive.writestr("inner/1.csv", first)
        archive.writestr("__MACOSX/inner/._1.csv", b"\x00\x05\x16\x07")
        archive.writestr("1.csv.CHECKSUM", "abc")
    (tmp_path / "2.csv.gz").write_bytes(gzip.compress(second.encode()))
    for paths in ([folder], [tmp_path / "a.zip"], [tmp_path / "2.csv.gz", place(first, tmp_path, "1.csv")]):
        reading = read(paths, TAKEN)
        same_bars(reading.frame, BARS)
        assert any("4 copies were left out" in note for note in reading.read_as.notes)
        assert len(reading.read_as.members) == 2
    assert "files are no data: left out (README.md)" in " ".join(read([folder], TAKEN).read_as.notes)


def test_a_folder_of_two_markets_or_of_two_timeframes_is_refused(tmp_path):
    header, cells = "time,open,high,low,close,volume", lambda row: [epoch(row), *ohlc(row), row.volume]
    one = place(written(BARS, cells, header), tmp_path, "BTC.csv")
    other = place(written(history(seed=4), cells, header), tmp_path, "ETH.csv")
    with pytest.raises(BadValues, match=r"ETH.csv.*one market, its closes differ from those of BTC.csv at \d\d of 40"):
        read([one, other], TAKEN)
    quarter = place(written(history(step_s=900), cells, header), tmp_path, "15m.csv")
    with pytest.raises(BadTimes, match=r"BTC.csv.*rows are mostly 3600 s apart and those of 15m.csv 900 s"):
        read([one, quarter], TAKEN)


def test_rows_that_contradict_one_another_at_a_seam_stay(tmp_path):
    first, second = halves(tmp_path, overlap=1)
    row = second.splitlines()[1]
    other = second.replace(row, row.rpartition(",")[0] + ",77")
    reading = read([place(first, tmp_path, "1.csv"), place(other, tmp_path, "2.csv")], TAKEN)
    assert len(reading.frame) == 41


def test_feather_and_parquet_are_read_with_their_index_and_levels(tmp_path):
    table = BARS.set_index("time").rename(columns=str.capitalize)
    table.to_parquet(tmp_path / "a.parquet")
    table.reset_index().to_feather(tmp_path / "a.feather")
    levels = table.copy()
    levels.columns = pd.MultiIndex.from_product([levels.columns, ["XYZ"]])
    levels.to_parquet(tmp_path / "m.parquet")
    for name in ("a.parquet", "a.feather", "m.parquet"):
        same_bars(read(tmp_path / name, TAKEN).frame, BARS)
    assert read(tmp_path / "m.parquet", TAKEN).read_as.identity == {"symbol": "XYZ"}
    pd.concat([levels, levels.rename(columns={"XYZ": "ABC"})], axis=1).to_parquet(tmp_path / "two.parquet")
    with pytest.raises(InputError, match=r"2 values|stands twice"):
        read(tmp_path / "two.parquet", TAKEN)


def test_decimal_and_text_numbers_of_a_table_are_numbers(tmp_path):
    typed = BARS.assign(close=[decimal.Decimal(str(close)) for close in BARS["close"]], open=BARS["open"].astype(str))
    typed.to_parquet(tmp_path / "a.parquet")
    same_bars(read(tmp_path / "a.parquet", TAKEN).frame, BARS)


def test_other_kinds_of_files_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "x")
    place("<!DOCTYPE html><html>404</html>", tmp_path, "b.csv")
    place('{"a": 1}', tmp_path, "c.csv")
    for name, kind in (("a.xlsx", "an Excel workbook"), ("b.csv", "a web page"), ("c.csv", "JSON")):
        with pytest.raises(InputError, match=f"{name}.*saw: {kind}.*still missing: a table.*for example"):
            read(tmp_path / name, TAKEN)


def test_a_cut_gzip_is_fetched_again(tmp_path):
    whole = gzip.compress(written(BARS, lambda row: [epoch(row), *ohlc(row)], "time,open,high,low,close").encode())
    with pytest.raises(InputError, match=r"cut off or damaged.*Fetch it again"):
        read(place(whole[: len(whole) // 2], tmp_path, "a.csv.gz"), TAKEN)
    assert len(read(place(whole, tmp_path, "named.csv"), TAKEN).frame) == 40  # the content decides


def test_a_close_stamp_is_stated(tmp_path):
    text = written(BARS, lambda row: [epoch(row), *ohlc(row), row.volume], "time,open,high,low,close,volume")
    reading = reading_of(text, tmp_path, FileOptions(stamp="end"))
    same_bars(reading.frame, BARS, shift_s=-3600)
    named = text.replace("time", "close_time", 1)
    with pytest.raises(BadTimes, match="--stamp end"):
        reading_of(named, tmp_path)
    same_bars(reading_of(named, tmp_path, FileOptions(stamp="end")).frame, BARS, shift_s=-3600)


def test_a_stated_timeframe_may_be_finer_than_the_rows_and_never_coarser(tmp_path):
    text = written(BARS, lambda row: [epoch(row), *ohlc(row)], "time,open,high,low,close")
    assert reading_of(text, tmp_path, FileOptions(timeframe="15m")).timeframe == "15m"
    with pytest.raises(BadTimes, match=r"rows mostly 3600 s apart.*4h"):
        reading_of(text, tmp_path, FileOptions(timeframe="4h"))


def test_two_files_of_one_name_are_two(tmp_path):
    first, second = halves(tmp_path, overlap=0)
    paths = [tmp_path / "a" / "bars.csv", tmp_path / "b" / "bars.csv"]
    for path, text in zip(paths, (first, second), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    same_bars(read(paths, TAKEN).frame, BARS)
    twice = read([paths[0], paths[0]], TAKEN)
    same_bars(twice.frame, BARS.iloc[:20])
    assert "20 copies were left out" in " ".join(twice.read_as.notes)
