"""An installation knows what it holds: what is offered is compared before any start, and what is taken is printed."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from flows.support.data_writer import write_snapshot
from flows.support.holdings import Held, held_bars, held_market, overlap, require_same_market, with_held_bars
from flows.support.installation import Installation, open_installation
from flows.support.live_feed import live_tail
from flows.support.market_access import MarketOffer, check_offer, history_end
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, utc
from pipelines.data import schemas
from pipelines.data.calendars import CALENDARS
from pipelines.data.quality import assess
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, NotEnoughData, UnreadableFile
from pipelines.settings import Settings, load_params, settings
from pipelines.store import BarBatch, Store

CASES = Path(__file__).parents[2] / "../shared/cases"
QUARTERS = Grid("15m")
NOW = datetime(2025, 1, 1, tzinfo=UTC)
START = 1_704_067_200.0
PER_DAY = 96


def market(days, first_day=0, step_s=900.0, seed=5):
    """Return bars (n, 9) of one walk, which the same day always shows alike."""
    n = int(60 * PER_DAY * 900 / step_s)
    rng = np.random.default_rng(seed)
    close = 1.1 * np.exp(np.cumsum(rng.normal(0, 4e-4, n)))
    opened = np.r_[1.1, close[:-1]]
    unknown = np.full(n, np.nan)
    rows = [START + step_s * np.arange(n), opened, np.maximum(opened, close), np.minimum(opened, close), close,
            rng.lognormal(2, 0.5, n), unknown, unknown, unknown]  # fmt: skip
    at = slice(int(first_day * 86_400 / step_s), int((first_day + days) * 86_400 / step_s))
    return np.column_stack(rows)[at]


def csv(path, bars):
    """Write bars as a file of prices and volume."""
    rows = np.column_stack([1e3 * bars[:, 0], bars[:, 1:6]])
    np.savetxt(path, rows, fmt="%d" + ",%.17g" * 5, header="open_time,open,high,low,close,volume", comments="")
    return path


def offer(*paths, symbol="EUR/USD"):
    """Return the offer of files of a market."""
    return MarketOffer(symbol=symbol, source="files", paths=tuple(map(str, paths)))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def installation(home):
    home.mkdir()
    opened = Installation(Settings(home=home), load_params(), Store.open(settings().store))
    yield opened
    opened.store.close()


def hold(bars, symbol="EUR/USD", grid=QUARTERS):
    """Write a snapshot of these bars, as ingest does."""
    frame = schemas.to_frame(bars, grid, NOW)
    write_snapshot(
        settings().workspace / "data", symbol, assess(frame, grid, NOW), {"source": "files"}, ingested_at=NOW
    )


def test_a_home_without_a_snapshot_holds_nothing_and_compares_nothing(home):
    assert held_market(settings().workspace, "EUR/USD") is None
    check_offer(settings().workspace, offer())
    with pytest.raises(UnreadableFile, match="no such file"):  # before anything starts
        check_offer(settings().workspace, offer("none.csv"))


def test_another_timeframe_of_a_held_symbol_is_refused_before_anything_starts_and_another_symbol_is_not(home, tmp_path):
    hold(market(6))
    hourly = csv(tmp_path / "1h.csv", market(20, 6, 3600.0))
    with pytest.raises(BadTimes, match=r"this home holds EUR/USD at 15m, 2024-01-01 00:00 to .*; the file is 1h"):
        check_offer(settings().workspace, offer(hourly))
    check_offer(settings().workspace, offer(hourly, symbol="GBP/USD"))  # an addition to the universe
    check_offer(settings().workspace, offer(csv(tmp_path / "next.csv", market(3, 5))))
    done = CliRunner().invoke(app, ["run", "--source", "files", "--path", str(hourly), "--symbol", "EURUSD", "--once"])
    assert isinstance(done.exception, BadTimes)
    assert not (home / "logs").exists()
    assert len(held_market(settings().workspace, "EUR/USD").bars()) == 6 * PER_DAY


def test_check_compares_with_the_home_where_it_is_told_to(home, tmp_path):
    hold(market(6))
    hourly = csv(tmp_path / "1h.csv", market(20, 6, 3600.0))
    assert CliRunner().invoke(app, ["check", str(hourly), "--json"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, ["check", str(hourly), "--home"]).exception, BadTimes)
    same = CliRunner().invoke(app, ["check", str(csv(tmp_path / "b.csv", market(3, 5))), "--home", "--json"])
    assert json.loads(same.stdout)["home"].startswith("this home holds EUR/USD at 15m")


def test_bars_of_another_phase_or_of_hours_at_which_the_market_is_shut_are_refused():
    forex = Held("EUR/USD", Grid("1h", CALENDARS["forex"]), NOW, NOW, Path(), {})
    opens = START + 3600.0 * np.arange(24 * 14)
    with pytest.raises(BadTimes, match=r"Of 336 bars given, 96 open none of its bars, the first at 2024-01-05 22:00"):
        require_same_market(forex, Grid("1h"), opens)
    require_same_market(forex, Grid("1h"), opens[forex.grid.on_grid(opens)])
    with pytest.raises(BadTimes, match="336 open none"):
        require_same_market(forex, Grid("1h"), opens + 1800.0)


def test_what_is_taken_of_a_second_file_is_counted(home):
    held, offered = market(20), market(10, 15)
    offered[[3, 40], 5] += 1.0  # volume of two bars that are there
    text = overlap(held, offered).describe(past_is_taken=False)
    assert text == (
        "of 960 bars 480 are new, from 2024-01-21 00:00 to 2024-01-25 23:45 UTC; 480 were there: 478 equal, 2 differ "
        "(first at 2024-01-16 00:45 UTC): the stored ones stay, see `bellwether data correct`"
    )
    early = overlap(market(5, 10), market(12))
    assert "960 lie before the first stored bar and are not taken" in early.describe(past_is_taken=False)
    assert early.describe(past_is_taken=True).startswith(
        "of 1,152 bars 960 are new, from 2024-01-01 00:00 to 2024-01-10"
    )


def test_the_stored_bars_stay_where_a_second_file_differs_and_the_same_file_gives_the_same_frame(home):
    hold(market(20))
    held = held_market(settings().workspace, "EUR/USD")
    again = schemas.to_frame(market(20), QUARTERS, NOW)
    assert with_held_bars(held, again) is again
    offered = market(10, 15)
    offered[3, 5] += 1.0
    joined = schemas.to_matrix(with_held_bars(held, schemas.to_frame(offered, QUARTERS, NOW)))
    np.testing.assert_array_equal(joined, market(25))
    earlier = schemas.to_matrix(with_held_bars(held, schemas.to_frame(market(30), QUARTERS, NOW)))
    np.testing.assert_array_equal(earlier, market(30))


def test_a_service_that_has_begun_is_sent_everything_a_second_file_has_new(installation, tmp_path, progress_lines):
    hold(market(20))
    seen = market(5, 20)
    installation.store.add_bars(BarBatch("EUR/USD", seen, seen[:, OPEN_TIME] + 900.0, NOW))
    np.testing.assert_array_equal(held_bars(installation, held_market(installation.workspace, "EUR/USD")), market(25))
    file = csv(tmp_path / "next.csv", market(30, 15))
    tail = live_tail(installation, offer(file)).live
    later = tail[tail[:, OPEN_TIME] > seen[-1, OPEN_TIME]]
    assert len(later) == 20 * PER_DAY  # also those before the last live_days, which would have been a gap
    assert "of 2,880 bars 1,920 are new" in progress_lines()
    short = csv(tmp_path / "day.csv", market(1, 25))  # needs no history of its own: this home has one
    tail = live_tail(installation, offer(short)).live
    np.testing.assert_array_equal(tail, market(1, 25))


def test_a_home_whose_service_never_began_takes_a_second_file_after_the_first(installation, tmp_path):
    hold(market(20))
    tail = live_tail(installation, offer(csv(tmp_path / "next.csv", market(3, 20))))
    assert utc(tail.cut).isoformat() == "2024-01-11T00:00:00+00:00"
    np.testing.assert_array_equal(tail.live, market(13, 10))


def test_live_days_are_trading_days():
    grid = Grid("1h", CALENDARS["us-equity"])
    hours = START + 1800.0 + 3600.0 * np.arange(24 * 7 * 8)
    opens = hours[grid.on_grid(hours)]
    cut = history_end(opens, grid, 12)
    assert (
        len(np.unique(np.floor(opens[opens >= cut] / 86_400.0))) == 13
    )  # the day of the last bar, and twelve before it
    assert utc(cut).isoformat() == "2024-02-07T14:30:00+00:00"
    assert history_end(START + 900.0 * np.arange(40 * PER_DAY), QUARTERS, 12) == START + 27 * 86_400.0


@pytest.mark.parametrize("days", [5, 13])
def test_too_short_a_file_names_the_days_that_suffice(installation, tmp_path, days):
    with pytest.raises(NotEnoughData, match=r"Give a longer file \(or --days\): 14 days"):
        live_tail(installation, offer(csv(tmp_path / "a.csv", market(days))))
    live_tail(installation, offer(csv(tmp_path / "b.csv", market(14))))


def test_the_case_of_a_next_file_of_another_timeframe(home):
    folder = CASES / "next-file-of-another-timeframe"
    if not folder.is_dir():
        pytest.skip("the case is not on this machine")
    rows = np.genfromtxt(folder / "EURUSD_15m_first.csv", delimiter=",", skip_header=1)
    bars = np.full((len(rows), BAR_WIDTH), np.nan)
    bars[:, :6] = rows
    bars[:, 0] /= 1e3
    hold(bars)
    with pytest.raises(BadTimes, match=r"this home holds EUR/USD at 15m.*the file is 1h"):
        check_offer(settings().workspace, offer(folder / "EURUSD_1h_next.csv"))
    assert open_installation().manifest()["timeframe"] == "15m"
