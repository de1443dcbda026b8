"""Recorded books replayed: they end where the recording ends, are never crossed, and read nothing later."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.context_layout import TAPE_FIELDS, TAPE_INDEX
from pipelines.data import records
from pipelines.data.readers import recordings
from pipelines.data.readers.trades import bars_from_trades
from pipelines.errors import BadColumns, BadValues, UnreadableFile
from pipelines.settings import ROOT

FOLDER = ROOT.parent / "shared" / "data" / "orderbook"
WITH_SNAPSHOT = ("binance_usdm_btcusdt_20230404", "binance_usdm_btcusdt_20240718", "binance_usdm_ethusdt_20240718")
recorded = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"recorded order books are not there: {FOLDER}")


@pytest.fixture(scope="module", params=WITH_SNAPSHOT)
def session(request):
    return FOLDER / request.param, recordings.replay_recording(FOLDER / request.param)


def quoted(folder, ids):
    """(n, 2) the recorded best bid and ask as of each of these exchange ids; NaN before the first."""
    quotes = pd.read_parquet(folder / "book_ticker.parquet").sort_values("update_id", kind="stable")
    at = np.searchsorted(quotes["update_id"].to_numpy(), ids, side="right") - 1
    return np.where(at[:, np.newaxis] >= 0, quotes[["bid_price", "ask_price"]].to_numpy()[at], np.nan)


@recorded
def test_the_replay_ends_at_the_recorded_best_bid_and_ask(session):
    folder, found = session
    assert found.best[-1, [0, 2]].tolist() == quoted(folder, found.ids[-1:])[0].tolist()


@recorded
def test_after_every_message_the_best_levels_are_the_quoted_ones(session):
    folder, found = session
    recorded = quoted(folder, found.ids)
    known = np.isfinite(recorded[:, 0])
    same = (found.best[known][:, [0, 2]] == recorded[known]).all(axis=1)
    assert known.sum() > 8000
    assert same.mean() > 0.999


@recorded
def test_no_message_is_lost_and_the_book_is_never_crossed(session):
    _, found = session
    assert found.sequence_breaks == 0
    assert found.messages > 8000
    assert len(found.books.known) > 400
    records.check(records.from_books(found.books, None), records.BOOK)


def part(folder, to, keep):
    """A copy of a recording with the depth messages `keep` (of their exchange ids) alone."""
    to.mkdir()
    updates = pd.read_parquet(folder / "depth_updates.parquet")
    updates[keep(updates["final_update_id"])].reset_index(drop=True).to_parquet(to / "depth_updates.parquet")
    for name in ("depth_snapshot.parquet", "trades.parquet"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


@recorded
def test_cutting_the_future_of_a_recording_changes_no_book_before(session, tmp_path):
    folder, found = session
    last = found.ids[len(found.ids) // 2]
    cut = recordings.replay_recording(part(folder, tmp_path / "cut", lambda ids: ids <= last)).books
    n = len(cut.known)
    assert 200 < n < len(found.books.known)
    for name in ("known", "levels", "tape"):
        assert getattr(cut, name).tobytes() == getattr(found.books, name)[:n].tobytes()


@recorded
def test_books_around_lost_messages_are_those_of_the_whole_recording_or_are_missing(session, tmp_path):
    folder, found = session
    lost = found.ids[4000:4010]
    holed = recordings.replay_recording(part(folder, tmp_path / "holed", lambda ids: ~ids.isin(lost)))
    known, recorded = found.books.known, holed.books.known
    at = np.searchsorted(known, recorded)
    assert (holed.sequence_breaks, len(holed.ids)) == (1, len(found.ids) - 10)
    assert recordings.BUILD_UP_S <= len(known) - len(recorded) <= recordings.BUILD_UP_S + 2
    assert holed.books.levels.tobytes() == found.books.levels[at].tobytes()
    rebuilt = np.argmax(np.diff(recorded)) + 1
    assert np.flatnonzero(np.isnan(holed.books.order_flow)).tolist() == [0, rebuilt]


@recorded
def test_without_its_snapshot_the_book_is_the_same_once_it_is_built_up(session, tmp_path):
    folder, found = session
    bare = part(folder, tmp_path / "bare", lambda ids: ids > 0)
    (bare / "depth_snapshot.parquet").unlink()
    books = recordings.replay_recording(bare).books
    assert len(books.known) > 350
    assert books.levels.tobytes() == found.books.levels[np.searchsorted(found.books.known, books.known)].tobytes()


@recorded
def test_trades_are_all_there_and_their_bars_hold_their_volume(session):
    folder, _ = session
    recorded, trades = pd.read_parquet(folder / "trades.parquet"), recordings.read_trades(folder)
    bars = bars_from_trades(trades, 60)
    assert len(trades.time) == len(recorded) == bars[:, 6].sum()
    assert bars[:, 5].sum() == pytest.approx(recorded["quantity"].sum(), rel=1e-12)
    assert bars[:, 7].sum() == pytest.approx(recorded.loc[~recorded["is_buyer_maker"], "quantity"].sum(), rel=1e-12)


@recorded
def test_a_session_without_a_snapshot_has_no_book_before_its_levels_were_quoted():
    folder = FOLDER / "binance_spot_btcusdt_20230405"
    first = recordings._known(pd.read_parquet(folder / "depth_updates.parquet"))[0]
    books = recordings.replay_recording(folder).books
    assert books.known[0] >= first + recordings.BUILD_UP_S
    assert (books.levels[:, 0, 0, 0] < books.levels[:, 1, 0, 0]).all()


@recorded
def test_lost_spot_messages_are_seen_in_their_numbers(tmp_path):
    folder = FOLDER / "binance_spot_btcusdt_20230405"
    updates = pd.read_parquet(folder / "depth_updates.parquet")
    ids = updates["final_update_id"].unique()
    assert recordings.replay_recording(folder).sequence_breaks == 0
    updates[~updates["final_update_id"].isin(ids[2000:2003])].to_parquet(tmp_path / "depth_updates.parquet")
    assert recordings.replay_recording(tmp_path).sequence_breaks == 1


# ---- a small recording written here


def write(folder: Path, rows, snapshot=True):
    """rows: (second, message id, side, price, size)."""
    folder.mkdir()
    moment = pd.Timestamp("2024-01-01", tz="UTC")
    frame = pd.DataFrame(rows, columns=["at", "final_update_id", "side", "price", "quantity"])
    stamps = moment + pd.to_timedelta(frame.pop("at"), unit="s")
    frame = frame.assign(receive_time=stamps, event_time=stamps, prev_final_update_id=frame["final_update_id"] - 1)
    frame.to_parquet(folder / "depth_updates.parquet")
    if snapshot:
        book = [("bid", 100.0, 1.0), ("bid", 99.9, 2.0), ("ask", 100.1, 3.0), ("ask", 100.2, 4.0)]
        recorded = pd.DataFrame(book, columns=["side", "price", "quantity"])
        recorded.assign(last_update_id=1, receive_time=moment, event_time=moment).to_parquet(
            folder / "depth_snapshot.parquet"
        )
    return folder


ROWS = [
    (0.5, 1, "bid", 50.0, 9.0),  # before the snapshot: already in it
    (1.2, 2, "bid", 100.0, 1.5),  # best bid grows by 0.5
    (1.4, 3, "ask", 100.1, 0.0),  # best ask taken away: the next one is 100.2
    (2.5, 4, "bid", 100.1, 0.7),  # a better bid
    (3.5, 5, "bid", 99.0, 1.0),  # far below
]


def test_levels_flow_and_times_of_a_book_replayed_by_hand(tmp_path):
    found = recordings.replay_recording(write(tmp_path / "r", ROWS))
    start = pd.Timestamp("2024-01-01", tz="UTC").timestamp()
    assert (found.books.known - start).tolist() == [2.0, 3.0]  # the last message came at 3.5
    np.testing.assert_allclose(found.books.levels[0, 0, :3, :2], [[100.0, 1.5], [99.9, 2.0], [np.nan, np.nan]])
    np.testing.assert_allclose(found.books.levels[1, :, 0, :2], [[100.1, 0.7], [100.2, 4.0]])
    # 2: + 1.5 - 1.0 on the bid; 3: + 3.0, the ask went up; the first book has none before it
    assert np.isnan(found.books.order_flow[0])
    assert found.books.order_flow[1] == pytest.approx(0.7)  # a higher bid counts whole


def test_nothing_is_returned_after_the_last_message(tmp_path):
    whole, cut = (
        recordings.replay_recording(write(tmp_path / "a", ROWS)),
        recordings.replay_recording(write(tmp_path / "b", ROWS[:4])),
    )
    assert len(cut.books.known) == 1  # the book of second 3 would miss what came after the cut
    assert cut.books.levels.tobytes() == whole.books.levels[:1].tobytes()


def test_a_crossed_book_is_refused(tmp_path):
    crossing = [*ROWS, (4.0, 6, "bid", 100.2, 1.0)]
    with pytest.raises(BadValues, match="crossed after 1 of 5"):
        recordings.replay_recording(write(tmp_path / "a", crossing))


def test_after_a_lost_message_the_book_is_built_up_again(tmp_path):
    later = [(100.5, 9, "bid", 100.0, 0.4), (100.5, 9, "ask", 100.3, 0.6), (200.0, 10, "bid", 99.5, 1.0)]
    found = recordings.replay_recording(write(tmp_path / "a", [*ROWS, *later]))
    start = pd.Timestamp("2024-01-01", tz="UTC").timestamp()
    assert found.sequence_breaks == 1
    recorded = found.books.known - start
    assert recorded[:3].tolist() == [2.0, 3.0, 161.0]  # not the seconds before the loss was seen, nor the minute after
    np.testing.assert_array_equal(found.books.levels[2, :, 0, :2], [[100.0, 0.4], [100.3, 0.6]])
    assert np.isnan(found.books.levels[2, :, 1:]).all()  # what rested before the loss is forgotten


def test_changes_that_do_not_reach_back_to_the_snapshot_are_a_loss(tmp_path):
    late = [(float(i), 5 + i, "bid", 100.0 - i / 10, 1.0) for i in range(4)]
    assert recordings.replay_recording(write(tmp_path / "a", late)).sequence_breaks == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"side": "buy"}, BadValues, "4 changes without a side"),
        ({"price": np.nan}, BadValues, "a price above 0"),
        ({"quantity": -1.0}, BadValues, "a size of 0 or more"),
        ({"price": [100.0, 100.0, 100.1, 1e12, 100.1]}, BadValues, "ticks of 0.1"),
    ],
)
def test_changes_that_cannot_be_are_refused(change, error, message, tmp_path):
    folder = write(tmp_path / "a", ROWS)
    pd.read_parquet(folder / "depth_updates.parquet").assign(**change).to_parquet(folder / "depth_updates.parquet")
    with pytest.raises(error, match=message):
        recordings.replay_recording(folder)


@pytest.mark.parametrize(
    ("column", "message"), [("quantity", "no column quantity"), ("prev_final_update_id", "could not be detected")]
)
def test_changes_without_a_column_or_numbers_are_refused(column, message, tmp_path):
    folder = write(tmp_path / "a", ROWS)
    pd.read_parquet(folder / "depth_updates.parquet").drop(columns=column).to_parquet(folder / "depth_updates.parquet")
    with pytest.raises(BadColumns, match=message):
        recordings.replay_recording(folder)


def test_a_folder_that_is_no_recording_says_what_one_is(tmp_path):
    with pytest.raises(UnreadableFile, match=r"depth_updates\.parquet"):
        recordings.replay_recording(tmp_path)


# ---- the tape of a recording


def trades_next_to(folder, rows):
    """rows: (second, price, size, whether the buyer was the maker)."""
    frame = pd.DataFrame(rows, columns=["at", "price", "quantity", "is_buyer_maker"])
    stamps = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(frame.pop("at"), unit="s")
    frame.assign(receive_time=stamps, event_time=stamps).to_parquet(folder / "trades.parquet")
    return folder


MESSAGES = [
    (1.2, 2, "bid", 99.0, 1.0),
    (2.5, 3, "bid", 100.0, 0.7),  # 0.5 of the 1.0 were sold: 0.2 are new
    (2.8, 4, "ask", 100.2, 1.0),  # 1.0 of the 4.0 were bought: 2.0 are withdrawn
    (3.5, 5, "bid", 98.0, 1.0),
]
SOLD = [(2.2, 100.0, 0.5, True), (2.6, 100.2, 1.0, False)]


def test_what_trades_do_not_explain_of_a_change_was_added_or_withdrawn(tmp_path):
    found = recordings.replay_recording(trades_next_to(write(tmp_path / "r", MESSAGES), SOLD)).books
    recorded = dict(zip(TAPE_FIELDS, found.tape[1], strict=True))
    assert recorded["stacking_bid"] == pytest.approx(0.2)
    assert recorded["stacking_ask"] == pytest.approx(-2.0)
    bare = recordings.replay_recording(write(tmp_path / "bare", MESSAGES)).books
    assert np.isnan(bare.tape[:, 2:]).all()  # without trades the two cannot be distinguished
    assert bare.tape[:, :2].tobytes() == found.tape[:, :2].tobytes()


def test_a_level_that_outlives_its_trades_was_refilled_once_a_message_knew_of_them(tmp_path):
    messages = [*MESSAGES[:1], (2.5, 3, "bid", 98.0, 1.0), (2.7, 4, "bid", 98.0, 2.0), (3.5, 5, "bid", 98.0, 1.0)]
    found = recordings.replay_recording(
        trades_next_to(write(tmp_path / "r", messages), [(2.6, 100.0, 0.5, True)])
    ).books
    assert dict(zip(TAPE_FIELDS, found.tape[1], strict=True))["stacking_bid"] == pytest.approx(0.5)


@recorded
def test_large_and_small_flow_are_the_signed_volume_of_the_trades_that_were_known(session):
    folder, found = session
    traded = pd.read_parquet(folder / "trades.parquet")
    known = recordings._known(traded)
    signed = traded["quantity"].to_numpy() * np.where(traded["is_buyer_maker"], -1.0, 1.0)
    tape = found.books.tape
    flow = tape[:, TAPE_INDEX["cvd_large"]] + tape[:, TAPE_INDEX["cvd_small"]]
    recorded = np.flatnonzero(np.isfinite(flow))
    assert len(recorded) > 100
    assert (np.diff(recorded) == 1).all()
    inside = (known > found.books.known[recorded[0]] - 1.0) & (known <= found.books.known[recorded[-1]])
    largest = np.abs(signed[inside]).max()  # an order whose fills became known on both sides of an edge
    assert flow[recorded].sum() == pytest.approx(signed[inside].sum(), abs=2 * largest)
    assert np.abs(flow[recorded]).sum() > 10 * largest


@recorded
def test_the_tape_of_a_recorded_session_has_every_field_its_spans_can_hold(session):
    tape = session[1].books.tape
    silent = {name for name, j in TAPE_INDEX.items() if np.isnan(tape[:, j]).all()}
    assert silent <= {"wall_bid", "wall_ask", "wall_bid_size", "wall_ask_size", "vpin"}
