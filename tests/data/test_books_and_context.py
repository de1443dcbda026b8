"""Files added to a source: context and recorded books, as far as they were known."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from pipelines.context_layout import CONTEXT_FIELDS
from pipelines.data.sources import check_request, read_books_and_context
from pipelines.errors import BadValues, UnreadableFile

START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def funding(tmp_path):
    (tmp_path / "funding.csv").write_text(
        "funding_time,funding_rate\n2024-01-01T00:00:00Z,0.0001\n2024-01-01T08:00:00Z,0.0002\n"
    )
    return tmp_path / "funding.csv"


@pytest.fixture
def recording(tmp_path):
    """Three messages in three minutes after a snapshot, and the funding rate announced with the mark price."""
    folder = tmp_path / "recording"
    folder.mkdir()
    stamps = pd.DatetimeIndex([START + timedelta(seconds=s) for s in (30, 90, 150)])
    frame = pd.DataFrame({"receive_time": stamps, "event_time": stamps})
    frame.assign(
        final_update_id=[2, 3, 4], prev_final_update_id=[1, 2, 3], side="bid", price=[99.0, 100.0, 99.5], quantity=1.0
    ).to_parquet(folder / "depth_updates.parquet")
    pd.DataFrame(
        {"last_update_id": 1, "side": ["bid", "ask"], "price": [98.0, 101.0], "quantity": [1.0, 1.0]}
    ).to_parquet(folder / "depth_snapshot.parquet")
    frame.assign(funding_rate=[3e-4, 3e-4, 4e-4]).to_parquet(folder / "mark_price.parquet")
    return folder


def test_books_and_all_context_are_one_feed_in_the_order_they_became_known(funding, recording):
    books, feed = read_books_and_context([funding, recording], "BTC/USDT", START + timedelta(days=1))
    assert (books.known - START.timestamp()).tolist() == [60.0, 120.0]
    assert books.levels[:, 0, 0, 0].tolist() == [99.0, 100.0]
    assert feed.value.tolist() == [1e-4, 3e-4, 3e-4, 4e-4, 2e-4]
    assert {CONTEXT_FIELDS[i] for i in feed.field} == {"funding_rate"}


def test_nothing_is_given_that_was_not_known_yet(funding, recording):
    books, feed = read_books_and_context([funding, recording], "BTC/USDT", START + timedelta(seconds=119))
    assert (books.known - START.timestamp()).tolist() == [60.0]
    assert (feed.known - START.timestamp()).tolist() == [0.0, 30.0, 90.0]


def test_a_series_without_a_file_is_missing_and_two_books_of_one_market_are_refused(funding, recording):
    assert read_books_and_context([], "BTC/USDT", START) == (None, None)
    assert read_books_and_context([funding], "BTC/USDT", START)[0] is None
    with pytest.raises(BadValues, match="2 recorded books given"):
        read_books_and_context([recording, recording], "BTC/USDT", START)


def test_context_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UnreadableFile, match="Check --context"):
        check_request("simulator", None, None, context=[tmp_path / "absent.parquet"])
