"""The feed of an installation: which one, of which markets, and from where each goes on."""

import numpy as np
import pytest
from support.feed_service import MINUTES, QUARTERS, minutes

from bellwether.operations.feed_markets import open_feed
from flows import universe
from flows.support.installation import Installation
from flows.support.market_access import MarketOffer
from pipelines.contracts import OPEN_TIME, utc
from pipelines.data.data_version import DataVersion, write_manifest, write_market
from pipelines.data.schemas import to_frame
from pipelines.errors import BadValues, StateError, UnknownName
from pipelines.settings import Settings, load_params
from pipelines.store import BarBatch, Store

T = 1_704_067_200.0
A, B = "BTC/USDT", "ETH/USDT"


@pytest.fixture
def installation(tmp_path):
    opened = Installation(Settings(home=tmp_path), load_params(), Store.open(f"sqlite:///{tmp_path}/store.db"))
    yield opened
    opened.store.close()


def versioned(installation, symbols, source, days=1):
    """Write a data version of these symbols, `days` from `T` on."""
    data = installation.workspace / "data"
    data.mkdir(parents=True, exist_ok=True)
    markets = {}
    for symbol in symbols:
        frame = to_frame(minutes(T, 1440 * days), MINUTES, utc(T + 86_400.0 * days))
        markets[symbol] = {
            "symbol": symbol, "timeframe": "1m", "grid": MINUTES.to_dict(), "first": utc(T).isoformat(),
            "last": utc(T + 86_400.0 * days - 60.0).isoformat(), "source": {"source": source}, "clock": "market",
            "files": write_market(data, symbol, frame, None, None),
        }  # fmt: skip
    write_manifest(data, DataVersion(markets))


def test_before_the_first_data_version_there_is_no_feed(installation):
    with pytest.raises(StateError):
        open_feed(installation)


def test_each_market_goes_on_after_its_newest_bar_of_the_version_or_of_the_service(installation):
    versioned(installation, [A, B], "files")
    bars = minutes(T + 86_400.0, 20)
    installation.store.add_bars(BarBatch(B, bars, bars[:, OPEN_TIME] + 60.0, utc(T)))
    opened = open_feed(installation, "push")
    assert {s: market.closed - T for s, market in opened.markets.items()} == {A: 86_400.0, B: 87_600.0}
    assert {market.grid for market in opened.markets.values()} == {QUARTERS}
    assert (opened.feed.name, opened.wall, set(opened.costs)) == ("push", False, {A, B})


def test_recorded_markets_are_read_from_the_files_of_the_universe(installation, tmp_path):
    versioned(installation, [A], "files")
    to_frame(minutes(T, 1440 + 45), MINUTES, None).drop(columns=["known_at", "ingested_at"]).to_parquet(
        tmp_path / "more.parquet"
    )
    universe.write(installation, [MarketOffer(symbol=A, source="files", paths=(str(tmp_path / "more.parquet"),))])
    opened = open_feed(installation)
    closes = list(opened.feed.stream([A]))
    assert [close - T - 86_400.0 for close, _ in closes] == [900.0, 1800.0, 2700.0]
    np.testing.assert_array_equal(closes[0][1][A].bars[:, 1:5], minutes(T, 1440 + 45)[1440:1455, 1:5])


def test_markets_of_which_nothing_more_is_read_wait_for_bars_that_are_pushed(installation):
    versioned(installation, [A], "files")
    assert open_feed(installation).feed.name == "push"


def test_markets_of_several_sources_are_refused_with_the_remedy_and_so_is_an_unknown_feed(installation, tmp_path):
    versioned(installation, [A, B], "simulator")
    universe.write(installation, [MarketOffer(symbol=A), MarketOffer(symbol=B, source="exchange")])
    with pytest.raises(BadValues, match=r"markets of exchange, simulator.*feed start --source push"):
        open_feed(installation)
    with pytest.raises(UnknownName, match="no feed 'fax'"):
        open_feed(installation, "fax")
