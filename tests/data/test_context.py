"""Context: known when it could be known, never before; several feeds are one; what is no context is refused."""

import numpy as np
import pandas as pd
import pytest

from pipelines.contracts import CONTEXT_FIELDS, CONTEXT_INDEX, ContextFeed
from pipelines.data.alignment import align
from pipelines.data.readers.context import merge_feeds, read_context
from pipelines.errors import BadColumns, BadTimes, BadValues, UnknownName, UnreadableFile
from pipelines.settings import ROOT

ALTERNATIVE = ROOT.parent / "shared" / "data" / "alternative"
T0 = pd.Timestamp("2024-01-01", tz="UTC")


def write(path, **columns):
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_a_daily_value_is_known_when_its_day_is_over(tmp_path):
    file = write(tmp_path / "f.parquet", date=[T0], fear_greed_value=[25])
    feed = read_context(file)
    assert feed.known.tolist() == [T0.timestamp() + 86400.0]
    closes = np.array([T0.timestamp() + 86399.0, T0.timestamp() + 86400.0])
    values = align(closes, 900.0, None, feed)[1][:, CONTEXT_INDEX["fear_greed"]]
    assert np.isnan(values[0])
    assert values[1] == 25.0


def test_the_close_of_the_reference_is_known_at_its_close(tmp_path):
    file = write(tmp_path / "r.csv.parquet", open_time=[T0, T0 + pd.Timedelta("1h")], close=[10.0, 11.0])
    assert (read_context(file).known - T0.timestamp()).tolist() == [3600.0, 7200.0]


def test_a_csv_is_read_as_well(tmp_path):
    (tmp_path / "f.csv").write_text("funding_time,funding_rate\n2024-01-01T00:00:00Z,0.0001\n")
    feed = read_context(tmp_path / "f.csv")
    assert (feed.known.tolist(), feed.value.tolist()) == ([T0.timestamp()], [1e-4])


@pytest.mark.parametrize(
    "moment", ["2024-01-01T00:00:00Z", "2024-01-01T02:00:00+02:00", "1704067200000", "1704067200000000"]
)
def test_times_are_read_as_those_of_bars_are(moment, tmp_path):
    (tmp_path / "f.csv").write_text(f"funding_time,funding_rate\n{moment},0.0001\n")
    assert read_context(tmp_path / "f.csv").known.tolist() == [T0.timestamp()]


def test_a_date_is_a_day_in_utc(tmp_path):
    (tmp_path / "f.csv").write_text("date,fear_greed_value\n2024-01-01,25\n")
    assert read_context(tmp_path / "f.csv").known.tolist() == [T0.timestamp() + 86400.0]


def test_an_empty_value_is_left_out(tmp_path):
    (tmp_path / "f.csv").write_text("date,fear_greed_value\n2024-01-01,25\n2024-01-02,\n2024-01-03,27\n")
    assert read_context(tmp_path / "f.csv").value.tolist() == [25.0, 27.0]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("funding_time,funding_rate\n2024-01-01T00:00:00,0.0001\n", BadTimes, "no time zone"),
        ("funding_time,funding_rate\nyesterday,0.0001\n", BadTimes, "not times"),
        ("funding_time,funding_rate\n17,0.0001\n", BadTimes, "neither epoch ms"),
        ("funding_time,funding_rate\n2024-01-01T00:00:00Z,high\n", BadValues, "not numbers"),
        ("funding_time,funding_rate\n2024-01-01T00:00:00Z", UnreadableFile, "cut off"),
        ("open_time,close\n2024-01-01T00:00:00Z,10.0\n", BadTimes, "do not show a timeframe"),
    ],
)
def test_context_that_could_mislead_is_refused(text, error, message, tmp_path):
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(error, match=f"f.csv.*{message}"):
        read_context(tmp_path / "f.csv")


def test_several_feeds_are_one_in_the_order_they_became_known():
    a = ContextFeed(np.array([1.0, 3.0]), np.array([2, 2]), np.array([0.1, 0.3]))
    b = ContextFeed(np.array([2.0]), np.array([3]), np.array([50.0]))
    both = merge_feeds([a, b])
    assert both.known.tolist() == [1.0, 2.0, 3.0]
    assert both.value[both.field == 3].tolist() == [50.0]
    assert merge_feeds([]) is None


def test_what_is_no_context_is_refused_with_the_layouts_known(tmp_path):
    with pytest.raises(BadColumns, match="funding_time"):
        read_context(write(tmp_path / "x.parquet", mood=[1.0]))
    (tmp_path / "y.parquet").write_bytes(b"no")
    with pytest.raises(UnreadableFile, match=r"y\.parquet"):
        read_context(tmp_path / "y.parquet")


@pytest.mark.skipif(not ALTERNATIVE.is_dir(), reason=f"recorded context is not there: {ALTERNATIVE}")
@pytest.mark.parametrize(
    ("name", "field", "n"),
    [("binance_usdm_btcusdt_funding_8h", "funding_rate", 3831), ("fear_greed_index_1d", "fear_greed", 2703)],
)
def test_recorded_series_are_read_whole(name, field, n):
    feed = read_context(ALTERNATIVE / f"{name}.parquet")
    assert len(feed.known) == n
    assert set(feed.field.tolist()) == {CONTEXT_INDEX[field]}
    assert (np.diff(feed.known) > 0).all()
