"""Trades from files: Binance's public layouts, with and without a header, and the bars they make."""

import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest

from pipelines.contracts import Trades
from pipelines.data.readers.files import FileOptions, read, read_trades
from pipelines.data.readers.trades import bars_from_trades
from pipelines.errors import BadColumns, BadTimes, BadValues

NOW = datetime(2025, 1, 1, tzinfo=UTC)
MS = 1_704_067_200_000  # 2024-01-01
LINES = {
    # id, price, qty, quote, time, maker
    "futures trades": ["1,100.0,0.5,50.0,{t0},true", "2,101.0,0.25,25.25,{t1},false", "3,99.0,1.0,99.0,{t2},true"],
    # id, price, qty, quote, time, maker, best match
    "spot trades": ["1,100.0,0.5,50,{t0},True,True", "2,101.0,0.25,25.25,{t1},False,True", "3,99,1,99,{t2},True,True"],
    # id, price, qty, first, last, time, maker
    "futures aggTrades": ["1,100.0,0.5,7,7,{t0},true", "2,101.0,0.25,8,9,{t1},false", "3,99.0,1.0,10,10,{t2},true"],
    # id, price, qty, first, last, time, maker, best match
    "spot aggTrades": ["1,100,0.5,7,7,{t0},True,True", "2,101,0.25,8,9,{t1},False,True", "3,99,1,10,10,{t2},True,True"],
}  # fmt: skip


def content(name: str, unit: int = 1) -> str:
    moments = {"t0": MS * unit, "t1": (MS + 30_000) * unit, "t2": (MS + 60_000) * unit}
    return "".join(line.format(**moments) + "\n" for line in LINES[name])


@pytest.mark.parametrize("unit", [1, 1000], ids=["ms", "us"])
@pytest.mark.parametrize("name", LINES)
def test_every_layout_makes_the_same_bars(name, unit, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text(content(name, unit))
    bars = read(file, NOW).frame
    assert bars["open"].tolist() == [100.0, 99.0]
    assert bars["close"].tolist() == [101.0, 99.0]
    assert bars["volume"].tolist() == [0.75, 1.0]
    assert bars["taker_buy_volume"].tolist() == [0.25, 0.0]
    assert bars["trades"].tolist() == [3.0 if "agg" in name else 2.0, 1.0]  # a row of aggTrades holds trades 8 and 9


def test_a_zip_and_a_header_are_read_as_well_and_the_timeframe_can_be_asked_for(tmp_path):
    header = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", header + content("futures aggTrades"))
    assert read(tmp_path / "t.zip", NOW, FileOptions(timeframe="5m")).frame["trades"].tolist() == [4.0]
    assert read_trades(tmp_path / "t.zip").side.tolist() == [-1.0, 1.0, -1.0]


def test_a_trade_without_a_size_and_a_file_that_is_none_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text(content("futures trades").replace(",0.25,", ",0.0,"))
    with pytest.raises(BadValues, match="1 trades without a time, price, size"):
        read(tmp_path / "a.csv", NOW)
    (tmp_path / "b.csv").write_text("1,2,3\n")
    with pytest.raises(BadColumns, match="no header"):
        read(tmp_path / "b.csv", NOW)


def place(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def agg(ids, seconds=None):
    """Return a file of aggTrades of one trade each, five seconds apart."""
    return "".join(f"{i},{100 + i}.0,0.5,{i},{i},{MS + 5000 * i if seconds is None else seconds},true\n" for i in ids)


def test_the_same_id_twice_is_one_trade_and_two_trades_of_one_id_are_refused(tmp_path):
    reading = read(place(tmp_path, agg(range(12)) + agg(range(4, 12)) + agg(range(12, 14))), NOW)
    assert reading.frame["volume"].sum() == 7.0
    assert "line 13 repeats trade 4: 8 rows whose id stands twice were left out" in reading.read_as.notes
    assert reading.read_as.no_bar == "no-trade"  # its ids run on: where no bar stands, nothing traded
    with pytest.raises(BadValues, match=r"id 4 for two different trades \(lines 5 and 13\)"):
        read(place(tmp_path, agg(range(12)) + agg([4]).replace("104.0", "105.0")), NOW)


def test_holes_in_the_ids_are_counted_and_located(tmp_path):
    reading = read(place(tmp_path, agg([0, 1, 2, 7, 8, 20])), NOW)
    assert reading.read_as.no_bar == "missing"
    assert (
        "15 trade ids are missing in 2 holes, so trades are lost: 11 before line 6 (2024-01-01T00:01:40Z), "
        "4 before line 4 (2024-01-01T00:00:35Z)"
    ) in reading.read_as.notes


def test_a_minute_that_two_files_share_is_one_bar(tmp_path):
    (tmp_path / "a.csv").write_text(agg(range(6)))
    (tmp_path / "b.csv").write_text(agg(range(6, 12)))
    assert len(read([tmp_path / "a.csv", tmp_path / "b.csv"], NOW).frame) == 1


def test_trades_of_other_venues_name_the_side_or_leave_takers_out(tmp_path):
    header = "timestamp,symbol,side,size,price,trdMatchID\n"
    rows = [f"{MS // 1000 + i}.25,XYZ,{'Buy' if i % 3 else 'Sell'},2,100.{i},a{i}\n" for i in range(9)]
    newest_first = read(place(tmp_path, header + "".join(rows[::-1])), NOW)
    assert newest_first.frame.loc[0, ["open", "close", "volume", "taker_buy_volume"]].tolist() == [100.0, 100.8, 18, 12]
    assert newest_first.read_as.identity == {"symbol": "XYZ"}
    bare = [f"{MS // 1000 + i}.5,100.0,2\n" for i in range(10)]
    assert read(place(tmp_path, "".join(bare)), NOW).frame["volume"].tolist() == [20.0]
    with pytest.raises(BadColumns, match="3 columns and no header"):
        read(place(tmp_path, bare[0]), NOW)
    unsided = "".join(f"{MS + i},{100 + i},1,{i}\n" for i in range(3))
    reading = read(place(tmp_path, "time,price,amount,id\n" + unsided), NOW)
    assert reading.frame["taker_buy_volume"].isna().all()
    assert "taker_buy_volume" in reading.read_as.not_recorded


def test_trades_in_contracts_are_read_in_the_base_asset(tmp_path):
    rows = "".join(f"{i},{40000 + i}.0,{i + 1},{100 * (i + 1) / (40000 + i):.8f},{MS + i},true\n" for i in range(12))
    reading = read(place(tmp_path, rows), NOW)
    assert reading.frame["volume"][0] == pytest.approx(sum(100 * (i + 1) / (40000 + i) for i in range(12)), rel=1e-6)
    assert any("counts contracts" in note for note in reading.read_as.notes)


def test_trades_out_of_order_make_no_bars():
    with pytest.raises(BadTimes, match="trade 1"):
        bars_from_trades(Trades(np.array([2.0, 1.0]), *np.ones((3, 2))), 60)
