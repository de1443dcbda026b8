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


def test_trades_out_of_order_make_no_bars():
    with pytest.raises(BadTimes, match="trade 1"):
        bars_from_trades(Trades(np.array([2.0, 1.0]), *np.ones((3, 2))), 60)
