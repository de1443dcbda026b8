"""Context: known when it could be known, never before; several feeds are one; what is no context is refused."""

import numpy as np
import pandas as pd
import pytest

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX
from pipelines.contracts import ContextFeed
from pipelines.costs import costs_of, funding_payments, funding_rates
from pipelines.data.alignment import align
from pipelines.data.readers.context import merge_feeds, read_context, read_context_file
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile
from pipelines.settings import ROOT, load_params

QUARTERS = Grid("15m")

ALTERNATIVE = ROOT.parent / "shared" / "data" / "alternative"
PARAMS = load_params(ROOT / "params.yaml")
T0 = pd.Timestamp("2024-01-01", tz="UTC")


def write(path, **columns):
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_a_daily_value_is_known_when_its_day_is_over(tmp_path):
    file = write(tmp_path / "f.parquet", date=[T0], fear_greed_value=[25])
    feed = read_context(file)
    assert feed.known.tolist() == [T0.timestamp() + 86400.0]
    opens = T0.timestamp() + 86400.0 - np.array([1800.0, 900.0])  # the last bar of the day closes with it
    values = align(opens, QUARTERS, None, feed)[1][:, CONTEXT_INDEX["fear_greed"]]
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


# ---- archives under their publishers' names, and the period of rates


def csv(path, text):
    path.write_text(text)
    return path


def values_at(feed, field):
    at = feed.field == CONTEXT_INDEX[field]
    return [(known - T0.timestamp(), value) for known, value in zip(feed.known[at], feed.value[at], strict=True)]


HOUR = 3600.0
MS = int(T0.timestamp() * 1000)


@pytest.mark.parametrize(
    ("header", "row", "field", "known", "value"),
    [
        ("calc_time,funding_interval_hours,last_funding_rate", f"{MS + 7},8,0.0001", "funding_rate", 0.007, 1e-4),
        ("calc_time,funding_interval_hours,last_funding_rate", f"{MS},4,0.0001", "funding_rate", 0.0, 2e-4),
        ("symbol,fundingTime,fundingRate", f"BTCUSDT,{MS},0.0001", "funding_rate", 0.0, 1e-4),
        ("create_time,symbol,sum_open_interest,sum_open_interest_value", "2024-01-01 00:05:00,BTCUSDT,80000,336",
         "open_interest", 600.0, 80000.0),
        ("timestamp,value,value_classification", "01-01-2024,40,Fear", "fear_greed", 86400.0, 40.0),
        ("timestamp,value,value_classification", "01/01/2024,40,Fear", "fear_greed", 86400.0, 40.0),
        ("timestamp,value,value_classification", f"{MS // 1000},40,Fear", "fear_greed", 86400.0, 40.0),
        ("Date,Fear_Greed_Value", "2024-01-01,40", "fear_greed", 86400.0, 40.0),
    ],
)  # fmt: skip
def test_archives_are_read_under_their_publishers_names(header, row, field, known, value, tmp_path):
    feed = read_context(csv(tmp_path / "a.csv", f"{header}\n{row}\n"))
    (found,) = values_at(feed, field)
    assert found == pytest.approx((known, value), abs=1e-6)


def test_days_of_the_world_and_of_the_united_states_are_told_apart_by_their_sign(tmp_path):
    header = "timestamp,value,value_classification\n"
    world = read_context(csv(tmp_path / "w.csv", f"{header}02-01-2024,40,Fear\n01-01-2024,41,Fear\n"))
    states = read_context(csv(tmp_path / "u.csv", f"{header}01/02/2024,40,Fear\n01/01/2024,41,Fear\n"))
    wanted = [(86400.0, 41.0), (2 * 86400.0, 40.0)]
    assert values_at(world, "fear_greed") == values_at(states, "fear_greed") == wanted
    with pytest.raises(BadTimes, match="31-13-2024"):
        read_context(csv(tmp_path / "x.csv", f"{header}01-01-2024,40,Fear\n31-13-2024,41,Fear\n"))


def settlements(*spacings, rate=1e-4, jitter=(0, 7, 14)):
    """Return a file's text: a settlement at T0, then one after each of these hours, some milliseconds late."""
    times = np.concatenate([[0], np.cumsum(spacings)]) * 3_600_000 + MS
    rows = [f"{int(t) + jitter[i % len(jitter)]},{rate}\n" for i, t in enumerate(times)]
    return "funding_time,funding_rate\n" + "".join(rows)


@pytest.mark.parametrize(
    ("spacings", "hours"),
    [
        ([8] * 4, [8] * 5),
        ([8, 8, 4, 4, 4], [8, 8, 8, 4, 4, 4]),
        ([4, 4, 8, 8], [4, 4, 4, 8, 8]),
        ([8, 8, 16, 8], [8, 8, 8, 8, 8]),  # a settlement is lacking
        ([4, 4, 8, 4, 4], [4] * 6),
        ([1] * 4, [1] * 5),
    ],
)
def test_rates_of_any_period_are_of_eight_hours(spacings, hours, tmp_path):
    read = read_context_file(csv(tmp_path / "f.csv", settlements(*spacings)))
    assert read.feed.value.tolist() == pytest.approx([8e-4 / each for each in hours])
    assert f"{hours.count(hours[-1])} of {hours[-1]} h" in read.read_as
    payments = funding_payments(funding_rates(read.feed), costs_of(PARAMS.costs, "binance", "perpetual"))
    assert payments[:, 0].tolist() == (T0.timestamp() + HOUR * np.concatenate([[0], np.cumsum(spacings)])).tolist()
    assert payments[:, 1].tolist() == pytest.approx([1e-4] * len(hours))  # what was settled is what was published


def test_a_period_that_is_not_shown_is_said_to_be_taken_as_eight_hours(tmp_path):
    minutes = "".join(f"{MS + 60_000 * i},0.0001\n" for i in range(5))
    for text in ("funding_time,funding_rate\n" + minutes, settlements()):
        read = read_context_file(csv(tmp_path / "f.csv", text))
        assert set(read.feed.value.tolist()) == {1e-4}
        assert "without a period shown, taken as of 8 h" in read.read_as


def test_context_of_two_markets_in_one_file_is_refused_with_their_rows(tmp_path):
    text = "symbol,fundingTime,fundingRate\n" + f"BTCUSDT,{MS},0.1\nETHUSDT,{MS},0.2\nETHUSDT,{MS + 1},0.2\n"
    with pytest.raises(BadValues, match="BTCUSDT in 1 rows, ETHUSDT in 2 rows"):
        read_context(csv(tmp_path / "f.csv", text))


CASE = ROOT.parent / "shared" / "cases" / "context-as-published"


@pytest.mark.skipif(not CASE.is_dir(), reason=f"the published archives are not there: {CASE}")
def test_the_published_archives_are_read_directly():
    fields = {}
    for name in ("BTCUSDT-fundingRate-2024-01", "BTCUSDT-metrics-2024-01-02", "fng", "funding_8h_then_4h"):
        feed = read_context(CASE / f"{name}.csv")
        fields[name] = (len(feed.known), *{CONTEXT_FIELDS[field] for field in feed.field})
    assert fields == {
        "BTCUSDT-fundingRate-2024-01": (60, "funding_rate"), "BTCUSDT-metrics-2024-01-02": (120, "open_interest"),
        "fng": (60, "fear_greed"), "funding_8h_then_4h": (120, "funding_rate"),
    }  # fmt: skip
    settled = read_context(CASE / "funding_8h_then_4h.csv").value
    assert settled[:60].tolist() == [*settled[61:].tolist(), 2e-4]  # 2 bp of 8 h, then 1 bp of 4 h
