"""`bellwether data list | show | diff | checkout | export`: real DVC, a folder as remote, two versions."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.operations.feed_wanted import FeedOrder, write_order
from flows.support.checked_out import checked_out
from flows.support.data_writer import CheckedMarket, write_version
from flows.support.installation import open_installation, workspace_lease
from pipelines import versioning
from pipelines.contracts import BAR_WIDTH, OPEN_TIME
from pipelines.data.quality import assess
from pipelines.data.schemas import to_frame
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues, BellwetherError, StateError, UnknownName, WouldOverwrite
from pipelines.settings import settings

QUARTERS = Grid("15m")
START = datetime(2024, 1, 30, tzinfo=UTC)


def bars(days):
    n = days * 96
    rows = np.full((n, BAR_WIDTH), np.nan)
    rows[:, OPEN_TIME] = START.timestamp() + 900.0 * np.arange(n)
    close = 100.0 + np.cumsum(np.random.default_rng(3).normal(0, 0.1, n))
    rows[:, 1:6] = np.column_stack([np.r_[100.0, close[:-1]], close + 1.0, close - 1.0, close, np.full(n, 5.0)])
    return rows


def ingested(installation, days, symbols):
    """Write a data version of these markets, as `ingest` does, and return its hash."""
    end = START + timedelta(days=days)
    report = assess(to_frame(bars(days), QUARTERS, end), QUARTERS, end)
    markets = [CheckedMarket(symbol, report, (None, None), {"source": "files"}) for symbol in symbols]
    with workspace_lease(installation):
        write_version(installation.data, markets)
        versioning.snapshot(installation.workspace)
        return versioning.keep_version(installation.workspace, installation.versions, made_now=True).name


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Yield (folder, older hash, newest hash) of a home with two data versions."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("versions") / "home"
        folder.mkdir()
        patch.setenv("BELLWETHER_HOME", str(folder))
        settings.cache_clear()
        installation = open_installation()
        yield folder, ingested(installation, 3, ["BTC/USDT"]), ingested(installation, 4, ["BTC/USDT", "ETH/USDT"])
        installation.store.close()
    settings.cache_clear()


def answered(*words):
    """Return what `bellwether data …` answers with --json. Raises what the command raised."""
    done = CliRunner().invoke(app, ["data", *words, "--json"], catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_versions_are_listed_with_what_they_hold_and_their_workspace_is_clean_after_each(home):
    _, older, newest = home
    found = answered("list")["versions"]
    assert [(one["data_hash"], one["symbols"], one["bars"], one["in_workspace"]) for one in found] == [
        (older, ["BTC/USDT"], 288, False), (newest, ["BTC/USDT", "ETH/USDT"], 768, True)
    ]  # fmt: skip
    with versioning._repo_in(settings().workspace) as repo:
        assert repo.status() == {}
    table = CliRunner().invoke(app, ["data", "list"])
    assert older[:12] in table.stdout
    assert newest[:12] in table.stdout


def test_a_version_is_shown_with_its_markets_and_months_by_the_beginning_of_its_hash(home):
    found = answered("show", home[1][:6])
    assert found["facts"]["BTC/USDT"]["rows"] == 288
    assert set(found["files"]) == {"manifest.json", "BTC-USDT/2024-01.parquet", "BTC-USDT/2024-02.parquet"}
    assert found["serves"] == []
    with pytest.raises(UnknownName, match="no data version begins with 'zz'"):
        answered("show", "zz")


def test_two_versions_differ_in_markets_months_and_facts(home):
    found = answered("diff", home[1], "newest")
    assert found["markets_added"] == ["ETH/USDT"]
    assert found["facts"]["BTC/USDT"]["rows"] == [288, 384]
    assert found["files"] == {
        "added": ["ETH-USDT/2024-01.parquet", "ETH-USDT/2024-02.parquet"], "gone": [],
        "changed": ["BTC-USDT/2024-02.parquet", "manifest.json"],
    }  # fmt: skip
    assert CliRunner().invoke(app, ["data", "diff", home[1], home[1]]).stdout.strip().endswith("They are the same.")


def test_an_export_is_whole_and_its_own_copy(home, tmp_path):
    found = answered("export", str(tmp_path / "out"), home[1], "--csv")
    assert found["data_hash"] == home[1]
    assert len(pd.read_csv(tmp_path / "out" / "BTC-USDT.csv")) == 288
    assert (tmp_path / "out" / "data.dvc").is_file()
    assert (tmp_path / "out" / "data" / "manifest.json").stat().st_nlink == 1
    with pytest.raises(WouldOverwrite):
        answered("export", str(tmp_path / "out"))


def test_an_older_version_is_checked_out_for_the_next_retrain_with_the_feed_stopped(home):
    _, older, newest = home
    with pytest.raises(BadValues, match="--reason"):
        answered("checkout", older)
    write_order(settings(), FeedOrder(True))
    with pytest.raises(StateError, match="bellwether feed stop"):
        answered("checkout", older, "--reason", "a bad day")
    write_order(settings(), FeedOrder(False))
    found = answered("checkout", older, "--reason", "a bad day", "--by", "ann")
    assert versioning.data_hash(settings().workspace) == older
    assert (found["next_retrain"]["data_hash"], found["next_retrain"]["newest"]) == (older, newest)
    assert "on an older version of the data" in checked_out(settings()).describe()
    assert [one["in_workspace"] for one in answered("list")["versions"]] == [True, False]  # and the newest stays so
    assert answered("checkout", "newest", "--reason", "done")["next_retrain"] is None
    assert checked_out(settings()) is None
    assert versioning.data_hash(settings().workspace) == newest


def test_a_version_whose_data_are_gone_says_so(home, tmp_path):
    folder = home[0] / "versions" / "feed.dir"
    folder.mkdir()
    (folder / "data.dvc").write_text("outs:\n- md5: feed0000000000000000000000000000.dir\n  hash: md5\n  path: data\n")
    try:
        assert answered("list")["versions"][-1]["symbols"] is None
        with pytest.raises(BellwetherError, match="neither cache nor remote"):
            answered("show", "feed")
        with pytest.raises(BellwetherError, match="not complete in cache or remote"):
            answered("export", str(tmp_path / "out"), "feed")
    finally:
        (folder / "data.dvc").unlink()
        folder.rmdir()
