"""Named series: any dated file becomes context, known when a person states; its field follows from the names alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.context_layout import CONTEXT_INDEX, SERIES_FIELDS
from pipelines.data.alignment import align, prune_records
from pipelines.data.readers.named import read_series
from pipelines.data.series import (
    MAX_AGE_S,
    SeriesFile,
    ages_of,
    duration_s,
    named_files,
    require_same,
    series_in,
    series_of,
    to_json,
)
from pipelines.data.sources import read_books_and_context
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadTimes, BadValues
from pipelines.features.catalog import FEATURES

T0 = pd.Timestamp("2024-01-01", tz="UTC")
DAY = 86400.0


def named(file, name="options_flow", lag_s=900.0, max_age_s=MAX_AGE_S):
    return SeriesFile(str(file), name, "contracts", lag_s, max_age_s)


def read(tmp_path, text, **stated):
    (tmp_path / "s.csv").write_text(text)
    file = named(tmp_path / "s.csv", **stated)
    feed = read_series(series_of([file])[0], tmp_path / "s.csv")
    return [(known - T0.timestamp(), value) for known, value in zip(feed.known, feed.value, strict=True)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("time,calls\n2024-01-01T00:00:00Z,5\n2024-01-01T01:00:00+01:00,7\n", [(900.0, 5.0), (900.0, 7.0)]),
        ("Timestamp,Value,puts\n1704070800000,3,9\n1704067200000,2,9\n", [(900.0, 2.0), (4500.0, 3.0)]),
        ("published,calls,options_flow\n1704067200,1,4\n", [(900.0, 4.0)]),
        ("date,buys\n2024-01-01,4\n2024-01-02,\n", [(DAY + 900.0, 4.0)]),  # a day is known when it is over, and the lag
        ("filed,buys\n31-01-2024,4\n", [(31 * DAY + 900.0, 4.0)]),
    ],
)
def test_a_value_is_known_its_lag_after_its_time(text, wanted, tmp_path):
    assert read(tmp_path, text) == wanted


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("time,calls\n2024-01-01 00:00:00,5\n", BadTimes, "no time zone"),
        ("when,calls\n1704067200000,5\n", BadColumns, "no column of times among when, calls"),
        ("time,calls,puts\n1704067200000,5,6\n", BadColumns, "several columns with numbers.*calls, puts"),
        ("time,mood\n1704067200000,good\n", BadColumns, "no column with numbers"),
        ("time,symbol,value\n1704067200000,A,1\n1704067200000,B,1\n", BadValues, "A in 1 rows, B in 1 rows"),
    ],
)
def test_a_file_that_does_not_show_its_series_is_refused(text, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read(tmp_path, text)


def test_names_belong_to_the_last_files_and_their_order_changes_no_field():
    files = [Path("funding.csv"), Path("b.csv"), Path("a.csv")]
    rest, found = named_files(files, ["social", "insider"], ["posts", "USD"], ["1h", "2d"], [])
    assert rest == [Path("funding.csv")]
    assert [(each.file, each.name, each.unit, each.lag_s, each.max_age_s) for each in found] == [
        ("b.csv", "social", "posts", 3600.0, 7 * DAY), ("a.csv", "insider", "USD", 2 * DAY, 7 * DAY)
    ]  # fmt: skip
    assert series_of(found) == series_of(found[::-1])
    assert [(each.field, each.name) for each in series_of(found)] == [("series_1", "insider"), ("series_2", "social")]
    assert series_in({"source": {"series": to_json(series_of(found))}}) == series_of(found)
    assert series_in({"source": {"source": "files"}}) == ()


def test_a_service_that_goes_on_is_sent_the_series_it_began_with():
    described = {"source": {"series": to_json(series_of([named("a.csv")]))}}
    require_same(described, [named("elsewhere.csv")])
    require_same(described, [])
    for other in ([named("a.csv", "social")], [named("a.csv", lag_s=0.0)]):
        with pytest.raises(BadValues, match=r"named series are options_flow.*BELLWETHER_HOME"):
            require_same(described, other)


@pytest.mark.parametrize(
    ("names", "units", "lags", "message"),
    [
        (["a"], [], ["1h"], "needs a file, its unit and its lag"),
        (["a", "b", "c"], ["x"] * 3, ["1h"] * 3, "2 --context, 3 --name"),
        (["a", "a"], ["x"] * 2, ["1h"] * 2, "each name once"),
        (["funding_rate"], ["x"], ["1h"], "a layout of its own"),
        (["Options Flow"], ["x"], ["1h"], "small letters"),
        (["a"], ["x"], ["soon"], "'soon' is no duration"),
    ],
)
def test_a_series_that_is_not_stated_whole_is_refused(names, units, lags, message):
    with pytest.raises(BadValues, match=message):
        named_files([Path("a.csv"), Path("b.csv")], names, units, lags, [])
    with pytest.raises(BadValues, match="at most 4"):
        series_of([named("x", name) for name in "abcde"])
    assert duration_s("1.5h", "--lag") == 5400.0


def test_a_value_counts_for_its_own_time_in_training_and_live(tmp_path):
    (tmp_path / "flow.csv").write_text("time,value\n2024-01-01T00:00:00Z,5\n2024-01-10T00:00:00Z,7\n")
    files = [named(tmp_path / "flow.csv", lag_s=0.0, max_age_s=3 * DAY)]
    _, feed = read_books_and_context([], "BTC/USDT", T0 + pd.Timedelta("30d"), files)
    ages, hours = ages_of(series_of(files)), Grid("1h")
    opens = T0.timestamp() + 3600.0 * np.arange(-1, 24 * 14 - 1)
    closes = hours.closes(opens)
    whole = align(opens, hours, None, feed, ages)[1]
    values = whole[:, CONTEXT_INDEX[SERIES_FIELDS[0]]]
    days = (closes - T0.timestamp()) / DAY
    np.testing.assert_array_equal(values, np.where(days < 3, 5.0, np.where((days >= 9) & (days < 12), 7.0, np.nan)))
    for i in range(1, len(closes), 7):
        kept = prune_records(closes[i - 1], 3600.0, None, feed, ages)
        assert align(opens[i : i + 1], hours, *kept, ages)[1].tobytes() == whole[i : i + 1].tobytes()


def test_features_pass_the_value_and_its_last_change_through():
    contexts = np.full((6, len(CONTEXT_INDEX)), np.nan)
    contexts[:, CONTEXT_INDEX["series_3"]] = [np.nan, 4.0, 4.0, 7.0, np.nan, 7.0]
    bars = np.tile([0.0, 9, 9, 9, 9, 5, 1, 2, np.nan], (6, 1))
    row = FEATURES.run(bars, None, contexts)
    value, change = (row[:, FEATURES.index[name]] for name in ("series_3", "series_3_change"))
    np.testing.assert_array_equal(value, [np.nan, 4.0, 4.0, 7.0, np.nan, 7.0])
    np.testing.assert_array_equal(change, [np.nan, np.nan, np.nan, 3.0, np.nan, 3.0])
    assert np.isnan(row[:, FEATURES.index["series_1"]]).all()
