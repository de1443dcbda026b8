import json
import zipfile
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from support.recorded_exchange import RecordedExchange, VenueScript

from pipelines.costs import venue_of
from pipelines.data.readers.exchange import Backfill
from pipelines.data.readers.reading import FileOptions
from pipelines.data.schemas import LAYOUT, check, to_matrix, write_bars
from pipelines.data.sources import SOURCES, check_request, make_source
from pipelines.errors import BadTimes, BadValues, UnknownName, UnreadableFile
from pipelines.market_params import ExchangeParams, SimulatorParams

START = datetime(2024, 1, 1, tzinfo=UTC)
TAKEN = datetime(2025, 1, 1, tzinfo=UTC)
SPEC = SimulatorParams(
    symbol="SIM/USDT", seed=7, start=START, history_days=3, live_days=1, drift_after_live_days=None,
    start_price=40_000.0, vol_15m_bps=45.0, edge=1.0,
)  # fmt: skip


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, monkeypatch):
    simulator = make_source("simulator", spec=SPEC)
    if request.param == "simulator":
        yield simulator
        return
    bars = simulator.fetch("SIM/USDT", TAKEN, None)
    if request.param == "exchange":
        monkeypatch.setenv("NO_PROXY", "*")
        recorded = RecordedExchange(TAKEN.timestamp(), binance=VenueScript(to_matrix(bars), symbol="SIM/USDT"))
        params = ExchangeParams(venues=["binance"], timeframe="1m", silence_bars=10**6)
        yield make_source("exchange", plan=Backfill(params, START, tmp_path, recorded.url, sleep=lambda wait: None))
        recorded.close()
        return
    write_bars(bars[:2000], tmp_path / "one.parquet")
    write_bars(bars[2000:].reset_index(drop=True), tmp_path / "two.parquet")
    yield make_source("files", path=[tmp_path / "one.parquet", tmp_path / "two.parquet"])


def test_a_source_gives_checked_bars_of_the_whole_period(source):
    bars = check(source.fetch("sim-usdt", TAKEN, None))
    assert len(bars) == 4 * 1440
    assert (bars["ingested_at"] == bars["known_at"]).all()


@pytest.mark.parametrize("late", [timedelta(0), timedelta(seconds=59)])
def test_a_source_gives_nothing_that_was_not_known_yet(source, late):
    bars = source.fetch("SIM/USDT", START + timedelta(hours=5) + late, TAKEN)
    assert len(bars) == 300
    assert bars["known_at"].max() == START + timedelta(hours=5)
    assert len(check(source.fetch("SIM/USDT", START, TAKEN), LAYOUT)) == 0


def test_a_source_refuses_what_it_does_not_hold_and_a_naive_clock(source):
    source.fetch("SIMUSDT", TAKEN, TAKEN)
    with pytest.raises(UnknownName, match="SIM/USDT"):
        source.fetch("BTCUSDT", TAKEN, TAKEN)
    with pytest.raises(BadTimes, match="no time zone"):
        source.fetch("SIM/USDT", datetime(2024, 1, 2), TAKEN)  # noqa: DTZ001


def test_a_source_says_where_its_bars_come_from_in_json(source):
    message = source.describe()
    assert message["source"] in SOURCES
    assert json.loads(json.dumps(message)) == json.loads(json.dumps(source.describe()))


def test_files_are_described_by_content_not_by_place(tmp_path):
    bars = make_source("simulator", spec=SPEC).fetch("SIM/USDT", TAKEN, None)
    for folder in ("here", "there"):
        write_bars(bars, tmp_path / folder / "a.parquet")
    here, there = (make_source("files", path=tmp_path / f / "a.parquet") for f in ("here", "there"))
    assert here.describe() == there.describe()
    assert len(here.describe()["files"][0]["sha256"]) == 64


def test_a_bar_from_after_its_own_ingestion_is_left_for_quality_to_quarantine(tmp_path):
    bars = make_source("simulator", spec=SPEC).fetch("SIM/USDT", TAKEN, None)[:10]
    false = bars.assign(
        open_time=bars["open_time"] + pd.Timedelta(days=4000), known_at=bars["known_at"] + pd.Timedelta(days=4000)
    )
    pd.concat([bars, false.assign(ingested_at=false["known_at"])]).drop(columns=["known_at", "ingested_at"]).to_parquet(
        tmp_path / "a.parquet"
    )
    assert len(make_source("files", path=tmp_path / "a.parquet").fetch("SIM/USDT", TAKEN, TAKEN)) == 20


def test_simulated_bars_do_not_depend_on_the_clock_of_the_ingestion():
    source = make_source("simulator", spec=SPEC)
    pd.testing.assert_frame_equal(source.fetch("SIM/USDT", TAKEN, TAKEN), source.fetch("SIM/USDT", TAKEN, None))


@pytest.mark.parametrize(
    ("name", "path", "symbol", "error", "message"),
    [
        ("telepathy", None, None, UnknownName, "known: simulator, files"),
        ("simulator", None, "BTCUSDT", UnknownName, "makes SIM/USDT"),
        ("simulator", "a.parquet", None, BadValues, "reads no file"),
        ("files", None, "BTCUSDT", BadValues, "needs a path"),
        ("files", "absent.csv", "BTCUSDT", UnreadableFile, "no such file"),
        ("files", "a.parquet", None, BadValues, "names its symbol"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_read(name, path, symbol, error, message, tmp_path):
    (tmp_path / "a.parquet").write_text("not read")
    with pytest.raises(error, match=message):
        check_request(name, tmp_path / path if path else None, symbol, SPEC)


def test_a_right_request_is_not_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("not read")
    check_request("files", tmp_path / "a.parquet", "BTCUSDT", SPEC)
    check_request("simulator", None, "simusdt", SPEC)
    check_request("simulator", None, None)


def test_an_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match="known: simulator, files"):
        make_source("telepathy")


# ---- where a market trades, which decides its costs


def kline(folder, name="BTCUSDT-1m.csv"):
    rows = [f"{1704067200000 + 60000 * i},1,1,1,1,1,{1704067259999 + 60000 * i},1,1,1,1,0\n" for i in range(3)]
    (folder / name).write_text("".join(rows))
    return folder / name


@pytest.mark.parametrize(
    ("stated", "symbol", "found"),
    [
        ({}, "BTC/USDT", ("binance", None)),  # spot and futures archives of Binance look alike
        ({"market": "spot"}, "BTC/USDT", ("binance", "spot")),
        ({}, "BTC/USDT:USDT", ("binance", "perpetual")),
        ({"venue": "kraken", "market": "spot"}, "BTC/USDT", ("kraken", "spot")),
    ],
)
def test_a_file_trades_where_it_is_said_to_or_where_its_layout_comes_from(tmp_path, stated, symbol, found):
    source = make_source("files", path=kline(tmp_path), **stated)
    source.fetch(symbol, TAKEN, TAKEN)
    assert (source.describe()["venue"], source.describe()["market"]) == found
    assert venue_of({"symbol": symbol, "source": source.describe()}) == found


def test_a_zipped_archive_names_its_venue_and_a_table_does_not(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(kline(tmp_path), "a.csv")
    write_bars(make_source("simulator", spec=SPEC).fetch("SIM/USDT", TAKEN, None)[:10], tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("open_time,open,high,low,close,volume\n1704067200000,1,1,1,1,1\n")
    named = [make_source("files", path=tmp_path / name).describe()["venue"] for name in ("a.zip", "b.parquet", "c.csv")]
    assert named == ["binance", None, None]


def named(folder, symbol):
    rows = "".join(f"{symbol},{1704067200000 + 60000 * i},1,1,1,1,1\n" for i in range(3))
    (folder / "n.csv").write_text("ticker,open_time,open,high,low,close,volume\n" + rows)
    return make_source("files", path=folder / "n.csv")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("BTCUSDT", "BTC/USDT"),
        ("btc-usdt", "BTC/USDT:USDT"),
        ("X:BTCUSD", "BTC/USD"),
        ("XYZ", "XYZ/USD"),
        ("BTC", "UNNAMED/USD"),
    ],
)
def test_a_file_that_names_the_symbol_wanted_is_read(written, wanted, tmp_path):
    assert len(named(tmp_path, written).fetch(wanted, TAKEN, TAKEN)) == 3


@pytest.mark.parametrize(("written", "wanted"), [("ETHUSDT", "BTC/USDT"), ("XYZ", "ABC/USD"), ("BTC/EUR", "BTC/USDT")])
def test_a_file_that_names_another_symbol_is_refused(written, wanted, tmp_path):
    with pytest.raises(BadValues, match=f"n.csv: its symbol is {written}, and {wanted} was wanted"):
        named(tmp_path, written).fetch(wanted, TAKEN, TAKEN)


def test_how_files_were_read_is_part_of_their_provenance(tmp_path):
    (tmp_path / "naive.csv").write_text(
        "time,open,high,low,close\n2024-01-01 00:00,1,1,1,1\n2024-01-01 00:01,1,1,1,1\n"
    )
    source = make_source("files", path=tmp_path / "naive.csv", options=FileOptions(timezone="-05:00"))
    assert source.fetch("BTC/USDT", TAKEN, TAKEN)["open_time"][0] == pd.Timestamp("2024-01-01T05:00Z")
    described = json.loads(json.dumps(source.describe()))
    assert described["options"]["timezone"] == "-05:00"
    assert described["read_as"]["time_form"] == "YYYY-MM-DD HH:MM in -05:00"


@pytest.mark.parametrize("source", ["simulator", "exchange"])
def test_a_source_that_knows_its_venue_is_told_none(source):
    with pytest.raises(BadValues, match="--venue and --market are for --source files"):
        check_request(source, None, "SIM/USDT", SPEC, venue="binance")


def test_an_unknown_kind_of_market_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UnknownName, match="spot, perpetual"):
        make_source("files", path=kline(tmp_path), market="swap")


def test_the_simulator_and_an_exchange_say_where_they_trade():
    assert venue_of({"source": make_source("simulator", spec=SPEC).describe()}) == ("simulator", "spot")
