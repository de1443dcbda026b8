"""How a source is split: history for training, the last days for the live service."""

import pandas as pd
import pytest

from flows.feed import live_tail
from flows.site import Site
from pipelines.contracts import OPEN_TIME
from pipelines.errors import NotEnoughData
from pipelines.settings import Settings, load_params
from pipelines.store import Store


@pytest.fixture
def site(tmp_path):
    opened = Site(Settings(home=tmp_path), load_params(), Store.open(f"sqlite:///{tmp_path}/store.db"))
    yield opened
    opened.store.close()


def recorded(folder, days):
    opened = pd.date_range("2024-01-01", periods=96 * days, freq="15min", tz="UTC")
    frame = pd.DataFrame(
        {"open_time": opened, "open": 100.0, "high": 101.0, "low": 99.0, "close": 100.0, "volume": 1.0}
    )
    frame.to_parquet(folder / "bars.parquet")
    return str(folder / "bars.parquet")


def test_the_last_days_of_a_file_are_kept_from_the_history(site, tmp_path):
    live_days = site.params.data.live_days
    cut, tail, _ = live_tail(site, "files", "BTC/USDT", recorded(tmp_path, days=40))
    assert len(tail) == 96 * (live_days + 1)
    assert tail[0, OPEN_TIME] == cut.timestamp()


def test_a_file_with_no_history_before_those_days_is_refused_with_its_length(site, tmp_path):
    with pytest.raises(NotEnoughData, match=r"BTC/USDT: .*bars.parquet has 96 usable bars.*Give a longer file"):
        live_tail(site, "files", "BTC/USDT", recorded(tmp_path, days=1))
