from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

from pipelines.data.calendars import CALENDARS
from pipelines.data.schemas import BARS, COLUMNS, LAYOUT, check, read_bars, to_frame, to_matrix, write_bars
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadShape, BadTimes, BadValues, UnreadableFile

MINUTES = Grid("1m")

START = 1_704_067_200.0  # 2024-01-01 00:00 UTC
TAKEN = datetime(2024, 2, 1, 12, 0, 0, 123456, tzinfo=UTC)


def matrix(n=50):
    rng = np.random.default_rng(3)
    body = 100 + rng.normal(size=(n, 2))
    rows = [START + 60.0 * np.arange(n), body[:, 0], body.max(axis=1) + 1, body.min(axis=1) - 1, body[:, 1]]
    return np.column_stack([*rows, 9 * rng.random(n), rng.integers(1, 9, n), rng.random(n), rng.random(n)])


def test_matrix_to_frame_and_back_is_exact():
    bars = matrix()
    bars[4, 5:] = np.nan
    frame = check(to_frame(bars, MINUTES, TAKEN))
    assert tuple(frame.columns) == COLUMNS
    assert to_matrix(frame).tobytes() == bars.tobytes()


def test_a_bar_is_known_at_its_close_and_ingested_when_stated():
    frame = to_frame(matrix(2), MINUTES, TAKEN)
    assert frame["open_time"][0] == pd.Timestamp("2024-01-01T00:00Z")
    assert frame["known_at"][0] == pd.Timestamp("2024-01-01T00:01Z")
    assert frame["ingested_at"].tolist() == [pd.Timestamp(TAKEN)] * 2
    reproducible = to_frame(matrix(2), MINUTES, None)
    assert reproducible["ingested_at"].equals(reproducible["known_at"].rename("ingested_at"))


def test_parquet_gives_the_frame_back_and_the_same_bytes_each_time(tmp_path):
    frame = to_frame(matrix(), MINUTES, TAKEN)
    write_bars(frame, tmp_path / "a.parquet")
    write_bars(read_bars(tmp_path / "a.parquet"), tmp_path / "deep" / "b.parquet")
    pd.testing.assert_frame_equal(read_bars(tmp_path / "a.parquet"), frame)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "deep" / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "deep"]  # no draft is left behind


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: f.drop(columns="high"), BadColumns, "open_time, known_at"),
        (lambda f: f[f.columns[::-1]], BadColumns, "in this order"),
        (lambda f: f.assign(extra=1.0), BadColumns, "got .*extra"),
        (lambda f: f.assign(open_time=f["open_time"].dt.tz_localize(None)), BadColumns, "datetime64"),
        (lambda f: f.assign(trades=f["trades"].astype(int)), BadColumns, "int64"),
        (lambda f: f.iloc[::-1].reset_index(drop=True), BadTimes, "first at row 1 of 50"),
        (lambda f: f.assign(known_at=f["open_time"]), BadTimes, "known_at must be after"),
        (lambda f: f.assign(low=0.0), BadValues, "above 0"),
        (lambda f: f.assign(close=np.nan), BadValues, "may be missing"),
        (lambda f: f.assign(volume=-1.0), BadValues, "not negative"),
        (lambda f: f.assign(high=f["low"]), BadValues, "highest"),
        (lambda f: f.assign(half_spread=-0.1), BadValues, "not negative"),
        (lambda f: f.assign(half_spread=f["low"]), BadValues, "under the low"),
    ],
)
def test_a_frame_that_is_not_clean_bars_is_neither_accepted_nor_written(spoil, error, message, tmp_path):
    spoilt = spoil(to_frame(matrix(), MINUTES, TAKEN))
    with pytest.raises(error, match=message):
        check(spoilt, BARS)
    with pytest.raises(error):
        write_bars(spoilt, tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


def test_the_layout_leaves_values_to_quality():
    frame = to_frame(matrix(), MINUTES, TAKEN).assign(close=np.nan, low=-1.0).iloc[::-1].reset_index(drop=True)
    check(frame, LAYOUT)


def test_a_file_of_release_050_is_read_with_an_unrecorded_spread(tmp_path):
    frame = to_frame(matrix(), MINUTES, TAKEN)
    write_bars(frame, tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet").drop_columns("half_spread")
    parquet.write_table(table.replace_schema_metadata({"bellwether.schema": "bars/1"}), tmp_path / "old.parquet")
    pd.testing.assert_frame_equal(read_bars(tmp_path / "old.parquet"), frame.assign(half_spread=np.nan))


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    frame = to_frame(matrix(), MINUTES, TAKEN)
    frame.to_parquet(path)
    with pytest.raises(BadColumns, match="expected 'bars/2'"):
        read_bars(path)
    write_bars(frame, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UnreadableFile, match=r"a\.parquet"):
        read_bars(path)


def test_bad_matrices_are_refused():
    with pytest.raises(BadShape, match="expected"):
        to_frame(matrix()[:, :5], MINUTES, None)
    with pytest.raises(BadTimes, match="no open_time"):
        to_frame(matrix() * np.nan, MINUTES, None)
    with pytest.raises(BadTimes, match="no time zone"):
        to_frame(matrix(), MINUTES, datetime(2024, 1, 1))  # noqa: DTZ001


def test_a_bar_is_known_when_its_session_closes():
    opens = [pd.Timestamp(day, tz="America/New_York") for day in ("2024-03-07 17:00", "2024-03-10 17:00")]
    bars = matrix(2)
    bars[:, 0] = [opened.timestamp() for opened in opens]
    frame = to_frame(bars, Grid("1d", CALENDARS["forex"]), None)
    assert frame["known_at"].tolist() == [pd.Timestamp("2024-03-08 22:00Z"), pd.Timestamp("2024-03-11 21:00Z")]
