"""Books, trades and context: what goes in comes out, and what cannot be is refused with its reason."""

import numpy as np
import pandas as pd
import pytest

from pipelines.context_layout import CONTEXT_INDEX, tape_of
from pipelines.contracts import BOOK_LEVELS, Books, ContextFeed, Trades
from pipelines.data import records
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile

KNOWN = 1.7e9 + 300.0 * np.arange(4)


def books() -> Books:
    levels = np.full((4, 2, BOOK_LEVELS, 3), np.nan)
    for i in range(4):
        for level in range(BOOK_LEVELS - i % 2):  # some books are shallow
            levels[i, 0, level] = 100.0 - level, 1.0 + level, 3
            levels[i, 1, level] = 101.0 + level, 2.0 + level, np.nan
    return Books(KNOWN, levels, tape_of(4, order_flow=[0.5, np.nan, -1.0, 2.0], order_flow_fast=0.25, vpin=0.5))


TRADED = Trades(KNOWN, np.full(4, 100.5), np.full(4, 0.1), np.array([1.0, -1.0, 1.0, 1.0]))
FEED = ContextFeed(
    KNOWN,
    np.array([CONTEXT_INDEX["funding_rate"], CONTEXT_INDEX["fear_greed"]] * 2),
    np.array([1e-4, 40.0, 2e-4, 45.0]),
)
KINDS = [
    (books(), records.from_books, records.to_books, records.write_book, records.read_book),
    (TRADED, records.from_trades, records.to_trades, records.write_trades, records.read_trades),
    (FEED, records.from_feed, records.to_feed, records.write_context, records.read_context),
]


@pytest.mark.parametrize(("records_in", "out", "back", "write", "read"), KINDS, ids=["book", "trades", "context"])
def test_what_is_written_is_what_is_read_and_the_same_records_give_the_same_bytes(
    records_in, out, back, write, read, tmp_path
):
    frame = out(records_in, None)
    write(frame, tmp_path / "a.parquet")
    write(frame.copy(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    pd.testing.assert_frame_equal(read(tmp_path / "a.parquet"), frame)
    again = back(frame)
    for name in records_in.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(records_in, name))


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("bid_price_1", 1, 101.0, "crossed"),
        ("ask_price_1", 0, np.nan, "best bid and ask"),
        ("bid_price_2", 2, 100.5, "away from the best"),
        ("ask_size_1", 3, 0.0, "size above 0"),
        ("ask_size_2", 3, np.nan, "size above 0"),
    ],
)
def test_a_book_that_cannot_be_is_refused(column, row, value, message, tmp_path):
    frame = records.from_books(books(), None)
    frame.loc[row, column] = value
    with pytest.raises(BadValues, match=message):
        records.write_book(frame, tmp_path / "book.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("column", "value", "message"), [("price", -1.0, "price"), ("size", 0.0, "size"), ("side", 0.0, "side must be")]
)
def test_a_trade_that_cannot_be_is_refused(column, value, message):
    frame = records.from_trades(TRADED, None)
    frame.loc[2, column] = value
    with pytest.raises(BadValues, match=message):
        records.check(frame, records.TRADES)


def test_context_nobody_knows_and_values_that_are_none_are_refused():
    frame = records.from_feed(FEED, None)
    with pytest.raises(BadValues, match="mood"):
        records.check(frame.assign(field="mood"), records.CONTEXT)
    with pytest.raises(BadValues, match="finite"):
        records.check(frame.assign(value=np.nan), records.CONTEXT)


def test_records_known_before_they_happened_or_out_of_order_are_refused():
    frame = records.from_trades(TRADED, None)
    with pytest.raises(BadTimes, match="before it happened"):
        records.check(frame.assign(event_time=frame["event_time"] + np.timedelta64(1_000_000, "us")), records.TRADES)
    with pytest.raises(BadTimes, match="goes back at row 1"):
        records.check(frame.iloc[::-1].reset_index(drop=True), records.TRADES)


def test_books_that_were_written_before_the_tape_are_read_and_what_they_lack_is_missing(tmp_path):
    frame = records.from_books(books(), None)
    columns = (*records.LEVEL_COLUMNS, "order_flow", "order_flow_fast")
    before = records.Kind("book/1", columns, lambda _: None)
    records._write(frame[[*records.TIMES, *columns]], tmp_path / "old.parquet", before)
    found = records.to_books(records.read_book(tmp_path / "old.parquet"))
    np.testing.assert_array_equal(found.levels, books().levels)
    np.testing.assert_array_equal(found.tape[:, :2], books().tape[:, :2])
    assert np.isnan(found.tape[:, 2:]).all()


def test_another_schema_and_a_broken_file_are_refused(tmp_path):
    records.write_trades(records.from_trades(TRADED, None), tmp_path / "t.parquet")
    with pytest.raises(BadColumns, match="trades/1"):
        records.read_book(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UnreadableFile, match="dvc pull"):
        records.read_trades(tmp_path / "t.parquet")
