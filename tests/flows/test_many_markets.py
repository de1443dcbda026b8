"""A universe is one data version: an unfit market is left out by name; universe.json says who is in it."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flows import ingest as ingest_flow
from flows import universe
from flows.ingest import ingest
from flows.support.data_writer import CheckedMarket, write_snapshot, write_version
from flows.support.installation import Installation
from flows.support.market_access import MarketOffer
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, utc
from pipelines.data import schemas
from pipelines.data.data_version import read_bars, read_manifest
from pipelines.data.quality import assess
from pipelines.data.readers.reading import FileOptions
from pipelines.data.series import SeriesFile
from pipelines.data.timeframes import Grid
from pipelines.errors import NotEnoughData, QualityBlocked, UnreadableFile
from pipelines.settings import Settings, load_params, settings
from pipelines.store import BarBatch, Store

QUARTERS = Grid("15m")
START = datetime(2024, 1, 1, tzinfo=UTC)
T0 = START.timestamp()
PER_DAY = 96
NOW = datetime(2025, 1, 1, tzinfo=UTC)


def walk(days, seed=1, step_s=900.0):
    """Return bars (n, 9) of a walk from START on."""
    n = int(days * 86_400 / step_s)
    close = 100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 1e-3, n)))
    rows = np.full((n, BAR_WIDTH), np.nan)
    opened = np.r_[100.0, close[:-1]]
    rows[:, :6] = np.column_stack(
        [T0 + step_s * np.arange(n), opened, np.maximum(opened, close), np.minimum(opened, close), close, close / 10]
    )
    return rows


def csv(path, bars):
    """Write bars as a file of prices and volume. Return its path."""
    rows = np.column_stack([1e3 * bars[:, 0], bars[:, 1:6]])
    np.savetxt(path, rows, fmt="%d" + ",%.17g" * 5, header="open_time,open,high,low,close,volume", comments="")
    return str(path)


@pytest.fixture
def tables():
    """The tables of markets that ingests showed."""
    return []


@pytest.fixture
def installation(tmp_path, monkeypatch, tables):
    """An empty home; tasks of ingest run as plain functions, and nothing is shown but `tables`."""
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    (tmp_path / "home").mkdir()
    for name in ("fetch", "observed", "check", "version", "embargo_windows"):
        monkeypatch.setattr(ingest_flow, name, getattr(ingest_flow, name).fn)
    monkeypatch.setattr(ingest_flow, "show_quality", lambda symbol, report: None)
    monkeypatch.setattr(ingest_flow, "create_table_artifact", lambda **artifact: tables.append(artifact["table"]))
    opened = Installation(Settings(home=tmp_path / "home"), load_params(), Store.open(settings().store))
    yield opened
    opened.store.close()
    settings.cache_clear()


@pytest.fixture
def offered(tmp_path):
    """Return the offer of a file of so many days of a symbol."""

    def make(symbol, days, **shown):
        file = csv(tmp_path / f"{symbol.replace('/', '')}.csv", walk(days, seed=len(symbol), **shown))
        return MarketOffer(symbol=symbol, source="files", paths=(file,))

    return make


def saw(installation, symbol, bars):
    """Store bars as the service does."""
    installation.store.add_bars(BarBatch(symbol, bars, bars[:, OPEN_TIME] + 900.0, NOW))


def left_out_alarms(installation):
    """Return the open alarms of markets that were left out."""
    return [alarm.detail for alarm in installation.store.alarms() if alarm.kind == "market_left_out"]


# ---- one data version


def test_all_markets_are_one_data_version_whose_hash_names_them(installation, offered):
    offers = [offered("BTC/USDT", 40), offered("ETH/USDT", 35)]
    data_hash = ingest.fn(offers)
    version = installation.data_version()
    assert (version.symbols, dict(version.left_out)) == (("BTC/USDT", "ETH/USDT"), {})
    assert installation.manifest()["symbol"] == "BTC/USDT"
    assert installation.base_grid("ETH/USDT") == QUARTERS
    bars = schemas.to_matrix(read_bars(installation.data, installation.manifest("ETH/USDT")))
    np.testing.assert_array_equal(bars[:, 4], walk(35, seed=8)[:, 4])
    assert version.markets["BTC/USDT"]["files"] == ["BTC-USDT/2024-01.parquet", "BTC-USDT/2024-02.parquet"]
    assert (installation.versions / data_hash / "data.dvc").is_file()
    assert universe.offers(installation) == offers
    assert ingest.fn() == data_hash  # the universe as it is: the same data


def test_one_unfit_market_is_left_out_by_name_until_it_is_fit(installation, offered, tmp_path, progress_lines, tables):
    good = offered("BTC/USDT", 40)
    holed = csv(tmp_path / "holed.csv", np.delete(walk(40, seed=8), slice(500, 2500), axis=0))
    unread = MarketOffer(symbol="GBP/USD", source="files", paths=(str(tmp_path / "none.csv"),))
    ingest.fn([good, MarketOffer(symbol="ETH/USDT", source="files", paths=(holed,)), unread])
    version = installation.data_version()
    assert version.symbols == ("BTC/USDT",)
    assert [(row["market"], bool(row["left out"])) for row in tables[-1]] == [
        ("BTC/USDT", False), ("GBP/USD", True), ("ETH/USDT", True),
    ]  # fmt: skip
    assert version.left_out["ETH/USDT"].startswith("ETH/USDT: quality ")
    assert "none.csv: no such file" in version.left_out["GBP/USD"]
    assert "GBP/USD is left out of this data version: " in progress_lines()
    assert sorted(detail.split(":")[0] for detail in left_out_alarms(installation)) == ["ETH/USDT", "GBP/USD"]
    assert universe.symbols(installation) == ("BTC/USDT", "ETH/USDT", "GBP/USD")  # they stay, and are asked again
    ingest.fn([offered("ETH/USDT", 40), offered("GBP/USD", 40)])
    assert installation.symbols == ("BTC/USDT", "ETH/USDT", "GBP/USD")
    assert left_out_alarms(installation) == []


def test_the_error_of_the_only_market_is_raised_as_it_is_and_changes_nothing(installation, tmp_path):
    holed = csv(tmp_path / "holed.csv", np.delete(walk(40), slice(500, 2500), axis=0))
    with pytest.raises(QualityBlocked, match="ETH/USDT: quality"):
        ingest.fn([MarketOffer(symbol="ETH/USDT", source="files", paths=(holed,))])
    nothing = [MarketOffer(symbol=s, source="files", paths=("none.csv",)) for s in ("A/USD", "B/USD")]
    with pytest.raises(NotEnoughData, match=r"none of 2 markets is usable: A/USD: .*; B/USD: "):
        ingest.fn(nothing)
    assert not universe.file_of(installation).exists()
    assert not installation.data.exists()


def test_a_market_that_would_decide_on_another_timeframe_is_left_out_whichever_came_first(installation, offered):
    ingest.fn([offered("BTC/USDT", 40), offered("EUR/USD", 40, step_s=3600.0)])
    version = installation.data_version()
    assert version.symbols == ("BTC/USDT",)
    assert "its bars are 1h, so it would decide on 1h; this universe decides on 15m" in version.left_out["EUR/USD"]


def test_a_home_of_hours_keeps_its_timeframe_when_finer_bars_are_added(installation, offered):
    ingest.fn([offered("EUR/USD", 40, step_s=3600.0)])
    ingest.fn([offered("BTC/USDT", 40)])
    version = installation.data_version()
    assert version.symbols == ("EUR/USD",)
    assert "it would decide on 15m; this universe decides on 1h" in version.left_out["BTC/USDT"]


def test_each_market_ends_where_it_is_told_to_and_goes_on_with_what_the_service_saw(installation, offered):
    offers = [offered("BTC/USDT", 40), offered("ETH/USDT", 40)]
    cut = START + timedelta(days=27)
    ingest.fn(offers, through={offer.symbol: cut for offer in offers})
    assert {facts["rows"] for facts in installation.data_version().markets.values()} == {27 * PER_DAY}
    saw(installation, "BTC/USDT", walk(40, seed=8)[27 * PER_DAY : 30 * PER_DAY])
    ingest.fn(observed=True)
    rows = {symbol: facts["rows"] for symbol, facts in installation.data_version().markets.items()}
    assert rows == {"BTC/USDT": 30 * PER_DAY, "ETH/USDT": 27 * PER_DAY}
    clocks = {facts["clock"] for facts in installation.data_version().markets.values()}
    assert clocks == {"market"}


def test_a_market_that_joins_is_read_as_far_as_the_others_have_come(installation, offered):
    first = offered("BTC/USDT", 40)
    ingest.fn([first], through=START + timedelta(days=27))
    saw(installation, "BTC/USDT", walk(40, seed=8)[27 * PER_DAY : 30 * PER_DAY])
    universe.add(installation, [offered("ETH/USDT", 40), offered("EUR/USD", 9)])
    ingest.fn(observed=True)
    version = installation.data_version()
    assert {facts["last"] for facts in version.markets.values()} == {utc(T0 + 900.0 * (30 * PER_DAY - 1)).isoformat()}
    assert list(version.left_out) == ["EUR/USD"]  # too short for a turn of its own
    assert "14 days" in version.left_out["EUR/USD"]


def test_a_market_that_no_source_gives_again_goes_on_as_it_was_when_what_came_since_is_unfit(
    installation, offered, progress_lines
):
    ingest.fn([offered("BTC/USDT", 40), offered("ETH/USDT", 40)])
    universe.add(installation, [MarketOffer(symbol="ETH/USDT", source="push")])
    saw(installation, "ETH/USDT", walk(85, seed=8)[84 * PER_DAY :])  # a feed that was dead for weeks
    ingest.fn(observed=True)
    assert installation.symbols == ("BTC/USDT", "ETH/USDT")
    assert installation.manifest("ETH/USDT")["rows"] == 40 * PER_DAY
    assert "ETH/USDT goes on as it was, without what the service saw since: ETH/USDT: quality" in progress_lines()


def test_who_is_added_while_an_ingest_runs_stays(installation, offered, monkeypatch):
    ingest.fn([offered("BTC/USDT", 40)])
    write = ingest_flow.version

    def meanwhile(*markets):
        universe.add(installation, [MarketOffer(symbol="LTC/USDT")])
        return write(*markets)

    monkeypatch.setattr(ingest_flow, "version", meanwhile)
    ingest.fn([offered("ETH/USDT", 40)])
    assert universe.symbols(installation) == ("BTC/USDT", "LTC/USDT", "ETH/USDT")


def test_a_market_that_was_removed_leaves_no_file_behind(installation, offered):
    ingest.fn([offered("BTC/USDT", 40), offered("ETH/USDT", 40)])
    universe.remove(installation, "BTC/USDT")
    ingest.fn()
    assert installation.symbols == ("ETH/USDT",)
    assert not (installation.data / "BTC-USDT").exists()


# ---- homes of earlier releases


def of_release_010(folder, bars, at):
    """Write a data version as releases up to 0.10 did: one market, a file a kind."""
    schemas.write_bars(schemas.to_frame(bars, QUARTERS, at), folder / "bars" / "SIM-USDT" / "15m.parquet")
    (folder / "manifest.json").write_text(json.dumps({
        "symbol": "SIM/USDT", "timeframe": "15m", "grid": QUARTERS.to_dict(), "file": "bars/SIM-USDT/15m.parquet",
        "book": None, "context": None, "rows": len(bars), "first": utc(bars[0, 0]).isoformat(),
        "last": utc(bars[-1, 0]).isoformat(), "clock": "market", "venue": "x", "market": "spot",
        "source": {"source": "files", "venue": "x", "market": "spot"},
    }))  # fmt: skip


def test_a_home_of_release_010_is_a_universe_of_one_and_its_next_version_has_a_file_a_month(installation):
    bars = walk(40)
    of_release_010(installation.data, bars, START + timedelta(days=41))
    assert universe.offers(installation) == [MarketOffer(symbol="SIM/USDT", source="files", venue="x", market="spot")]
    saw(installation, "SIM/USDT", np.r_[bars, walk(42)[40 * PER_DAY :]][-2 * PER_DAY :])
    ingest.fn(observed=True)
    facts = installation.manifest()
    assert json.loads((installation.data / "manifest.json").read_text())["format"] == 2
    assert (facts["rows"], facts["venue"], facts["clock"]) == (42 * PER_DAY, "x", "market")
    frame = read_bars(installation.data, facts)
    assert (frame["ingested_at"].iloc[: 40 * PER_DAY] == START + timedelta(days=41)).all()  # first ingestion stays
    assert {path.name for path in installation.data.iterdir()} == {"manifest.json", "SIM-USDT"}


def test_meta_of_a_release_010_is_that_of_its_market_and_a_new_one_is_merged_with_what_all_share(installation):
    installation.features.mkdir(parents=True)
    meta = installation.features / "meta.json"
    meta.write_text(json.dumps({"symbol": "SIM/USDT", "decision_timeframe": "15m"}))
    assert installation.meta_of() == installation.meta_of("SIM/USDT") == {
        "symbol": "SIM/USDT", "decision_timeframe": "15m",
    }  # fmt: skip
    assert installation.features_of("SIM/USDT") == installation.features
    meta.write_text(json.dumps({"decision_timeframe": "15m", "symbols": ["A/USD", "B/USD"],
                                "markets": {"A/USD": {"venue": "x"}, "B/USD": {"venue": "y"}}}))  # fmt: skip
    found = installation.meta_of("B/USD")
    assert (found["symbol"], found["venue"], found["decision_timeframe"]) == ("B/USD", "y", "15m")
    (installation.features / "B-USD").mkdir()
    assert installation.features_of("B/USD") == installation.features / "B-USD"


# ---- who is in the universe


def test_an_offer_goes_through_json_unchanged():
    offer = MarketOffer(
        symbol="btcusdt", source="files", paths=("/a.csv",), since=START, context=("/f.csv",), venue="binance",
        market="spot", series=(SeriesFile("/s.csv", "flow", "contracts", 60.0),), events="/e.csv", sessions="forex",
        options=FileOptions(timeframe="1h", day_first=True),
    )  # fmt: skip
    assert offer.symbol == "BTC/USDT"
    assert MarketOffer.model_validate_json(offer.model_dump_json()) == offer
    assert {"symbol": offer.symbol, **json.loads(offer.model_dump_json(exclude_defaults=True))} == json.loads(
        offer.model_dump_json(exclude_defaults=True)
    )


def test_a_new_home_has_the_universe_of_the_parameters_until_a_run_names_its_own(installation):
    assert universe.symbols(installation) == tuple(installation.params.universe.symbols)
    named = [MarketOffer(symbol="A/USD")]
    assert universe.merged(installation, named) == named  # it is the whole
    assert len(universe.merged(installation, [])) == len(installation.params.universe.symbols)
    universe.write(installation, named)
    later = MarketOffer(symbol="A/USD", source="exchange")
    assert universe.merged(installation, [MarketOffer(symbol="B/USD"), later]) == [later, MarketOffer(symbol="B/USD")]
    universe.file_of(installation).write_text("{")
    with pytest.raises(UnreadableFile, match="Delete it"):
        universe.symbols(installation)


def test_the_same_markets_in_one_version_give_the_same_bytes(tmp_path):
    markets = [
        CheckedMarket(s, assess(schemas.to_frame(walk(3, seed=i), QUARTERS, NOW), QUARTERS, NOW), (None, None), {})
        for i, s in enumerate(("A/USD", "B/USD"))
    ]
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_version(folder, markets, {"C/USD": "no bars"})
        written.append({str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()})
    assert written[0] == written[1]
    assert read_manifest(tmp_path / "one").left_out == {"C/USD": "no bars"}
    write_snapshot(tmp_path / "one", "B/USD", markets[1].report, {})
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"manifest.json", "B-USD"}
