"""`bellwether symbols` and the markets a `run` offers: who joins, who is refused, and who may not go yet."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.cli.offers import Stated, named_path, offers_of
from flows import universe
from flows.support.data_writer import CheckedMarket, write_version
from flows.support.installation import now, open_installation
from flows.support.market_access import MarketOffer
from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision
from pipelines.data.quality import assess
from pipelines.data.readers.reading import FileOptions
from pipelines.data.schemas import to_frame
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues, BellwetherError, UnreadableFile
from pipelines.settings import settings
from pipelines.store import DecisionRecord

QUARTERS = Grid("15m")
START = datetime(2024, 1, 1, tzinfo=UTC)
END = START + timedelta(days=20)


def bars(days=20, step_s=900.0):
    n = int(days * 86_400 / step_s)
    rows = np.full((n, BAR_WIDTH), np.nan)
    rows[:, OPEN_TIME] = START.timestamp() + step_s * np.arange(n)
    close = 100.0 + np.cumsum(np.random.default_rng(3).normal(0, 0.1, n))
    rows[:, 1:6] = np.column_stack([np.r_[100.0, close[:-1]], close + 1.0, close - 1.0, close, np.full(n, 5.0)])
    return rows


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def held(home):
    """A home that holds two markets of recorded files."""
    report = assess(to_frame(bars(), QUARTERS, END), QUARTERS, END)
    markets = [CheckedMarket(s, report, (None, None), {"source": "files"}) for s in ("BTC/USDT", "ETH/USDT")]
    write_version(settings().workspace / "data", markets, {"GBP/USD": "GBP/USD: quality 0.5 is under the floor"})
    return home


@pytest.fixture
def csv(tmp_path):
    """Return a file of quarter hours."""

    def make(name, days=20, step_s=900.0):
        rows = bars(days, step_s)
        np.savetxt(tmp_path / name, np.column_stack([1e3 * rows[:, 0], rows[:, 1:6]]), fmt="%d" + ",%.17g" * 5,
                   header="open_time,open,high,low,close,volume", comments="")  # fmt: skip
        return tmp_path / name

    return make


def run(*words):
    done = CliRunner().invoke(app, ["symbols", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def stated(source=None, symbols=(), paths=(), **more):
    return Stated(source, symbols, [str(path) for path in paths], FileOptions(), **more)


# ---- list, add, remove


def test_a_new_home_lists_the_universe_of_the_parameters_and_creates_no_file(home):
    found = json.loads(run("list", "--json"))["symbols"]
    assert [one["symbol"] for one in found] == list(open_installation().params.universe.symbols)
    assert {one["state"] for one in found} == {"new: the next data version takes it in"}
    assert not (home / "universe.json").exists()


def test_the_list_shows_what_is_held_what_was_left_out_and_what_is_new(held, csv):
    run("add", "GBP/USD", "--source", "files", "--path", csv("gbp.csv"))
    shown = run("add", "LTCUSDT", "--source", "files", "--path", csv("ltc.csv"))
    assert "abstain on it (UNSEEN_SYMBOL)" in " ".join(shown.split())
    found = {one["symbol"]: one for one in json.loads(run("list", "--json"))["symbols"]}
    assert list(found) == ["BTC/USDT", "ETH/USDT", "GBP/USD", "LTC/USDT"]
    assert (found["ETH/USDT"]["bars"], found["ETH/USDT"]["state"]) == (20 * 96, "held")
    assert found["GBP/USD"]["state"].startswith("left out: GBP/USD: quality")
    assert found["LTC/USDT"]["state"].startswith("new")
    assert found["LTC/USDT"]["paths"] == [str(csv("ltc.csv"))]
    assert all(len(line) <= 80 for line in run("list").splitlines())


def test_a_symbol_that_is_added_again_comes_from_where_it_is_stated_now(held, csv):
    file = csv("next.csv", 30)
    assert json.loads(run("add", "BTC/USDT", "--source", "files", "--path", file, "--json"))["known"]
    assert universe.offers(open_installation())[0].paths == (str(file),)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["add", "LTC/USDT", "--source", "files"], "needs a path"),
        (["add", "LTC/USDT", "--source", "files", "--path", "none.csv"], "no such file"),
        (["add", "BTC/USDT", "--source", "files", "--path", "1h.csv"], "this home holds BTC/USDT at 15m"),
        (["remove", "LTC/USDT"], "LTC/USDT is not in the universe, which holds BTC/USDT, ETH/USDT"),
    ],
)
def test_what_cannot_be_added_or_removed_is_refused_and_nothing_changes(
    held, csv, monkeypatch, tmp_path, words, problem
):
    csv("1h.csv", 20, 3600.0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BellwetherError, match=problem):
        run(*words)
    assert not (held / "universe.json").exists()


def test_a_symbol_is_removed_and_a_dry_run_changes_nothing(held):
    assert json.loads(run("remove", "BTC/USDT", "--dry-run", "--json")) == {
        "dry_run": True, "removed": "BTC/USDT", "symbols": ["ETH/USDT"],
    }  # fmt: skip
    assert universe.symbols(open_installation()) == ("BTC/USDT", "ETH/USDT")
    assert "BTC/USDT is removed; ETH/USDT stay" in run("remove", "BTC/USDT")
    assert universe.symbols(open_installation()) == ("ETH/USDT",)
    with pytest.raises(BellwetherError, match="is the only symbol of this home"):
        run("remove", "ETH/USDT")


def decided(symbol, as_of, hours):
    """Return an emitted decision whose position is open so long."""
    return Decision(
        id=f"{symbol}-{hours}", symbol=symbol, as_of=as_of, known_at=as_of, ingested_at=as_of, action="BUY",
        direction=1, confidence=0.8, entry=102.0, stop=101.0, take_profits=(104.0,), size=0.05,
        expiry=as_of + timedelta(hours=hours), edge_bps=3.5, p=0.6, regime="TRENDING", tier=2, arm="champion",
        event="fvg",
    )  # fmt: skip


def test_a_symbol_with_an_open_position_stays_until_it_ends(held):
    store = open_installation().store
    emitted = [decided("BTC/USDT", END, 4), decided("ETH/USDT", END - timedelta(days=1), 4)]
    store.add_decisions([DecisionRecord(one, b"", b"") for one in emitted])
    with pytest.raises(BellwetherError, match=r"position BTC/USDT-4 is open until 2024-01-21 04:00 UTC"):
        run("remove", "BTC/USDT", "--dry-run")
    run("remove", "ETH/USDT", "--dry-run")  # past its expiry


def test_no_symbol_goes_while_a_retrain_runs_or_a_version_waits_for_a_person(held):
    store = open_installation().store
    store.request_retrain("validator", "drift", now(), timedelta(0))
    run("remove", "ETH/USDT", "--dry-run")  # queued: it has not begun
    claimed = store.claim_retrain("host:1", now(), timedelta(minutes=30), "validator")
    with pytest.raises(BellwetherError, match=r"a retrain of validator on this universe runs until .* UTC"):
        run("remove", "ETH/USDT")
    store.finish_retrain(claimed.id, "host:1", now(), True, "done")
    store.raise_alarm("approval_waits", "warning", "validator version 3 waits for a person until Friday", now())
    with pytest.raises(BellwetherError, match="waits for a person until Friday"):
        run("remove", "ETH/USDT")


def test_a_file_is_checked_against_the_market_that_is_named_and_a_new_symbol_against_none(held, csv):
    done = CliRunner().invoke(app, ["check", str(csv("a.csv")), "--home"])
    assert "this home holds BTC/USDT, ETH/USDT: name the one" in str(done.exception)
    for symbol, about in (("ETH/USDT", "this home holds ETH/USDT at 15m"), ("LTC/USDT", None)):
        done = CliRunner().invoke(app, ["check", str(csv("a.csv")), "--home", "--symbol", symbol, "--json"])
        home = json.loads(done.stdout)["home"]
        assert home is None if about is None else home.startswith(about)


# ---- what a run offers


def test_nothing_stated_leaves_the_universe_as_it_is(home):
    assert offers_of(stated()) == []


def test_the_simulator_offers_what_this_home_simulates_or_what_the_parameters_name(home):
    names = [offer.symbol for offer in offers_of(stated(symbols=["SIM/USDT"]))]
    assert names == ["SIM/USDT"]
    report = assess(to_frame(bars(), QUARTERS, END), QUARTERS, END)
    market = CheckedMarket("SIM/USDT", report, (None, None), {"source": "simulator"})
    write_version(settings().workspace / "data", [market])
    assert [offer.symbol for offer in offers_of(stated("simulator"))] == ["SIM/USDT"]


def test_one_file_is_that_of_the_one_symbol_and_of_several_each_names_its_own(home, csv):
    a, b = csv("a.csv"), csv("b.csv")
    (only,) = offers_of(stated("files", ["BTC/USDT"], [a, b]))
    assert only == MarketOffer(symbol="BTC/USDT", source="files", paths=(str(a), str(b)))
    found = offers_of(stated("files", ["ETH/USDT"], [f"btcusdt={a}", f"ETH/USDT={b}"], venue="binance"))
    assert [(one.symbol, one.paths, one.venue) for one in found] == [
        ("ETH/USDT", (str(b),), "binance"), ("BTC/USDT", (str(a),), "binance"),
    ]  # fmt: skip
    with pytest.raises(BadValues, match=r"of which of BTC/USDT, ETH/USDT\? Write --path BTC/USDT="):
        offers_of(stated("files", ["BTC/USDT", "ETH/USDT"], [a]))
    with pytest.raises(BadValues, match="no file names its symbol"):
        offers_of(stated("files", [], [a]))
    with pytest.raises(BadValues, match="reads no file"):
        offers_of(stated(None, ["BTC/USDT"], [a]))


def test_a_file_whose_own_name_holds_an_equals_sign_is_that_file(csv, tmp_path):
    file = csv("BTCUSDT=X.csv")
    assert named_path(str(file)) == (None, file)
    assert named_path("BTCUSDT=data/a=b.csv") == ("BTC/USDT", Path("data/a=b.csv"))
    assert named_path("no symbol!=b.csv") == (None, Path("no symbol!=b.csv"))


def test_a_wrong_file_of_one_of_several_is_refused_before_anything_starts(home, csv):
    words = ["run", "--source", "files", "--path", f"BTC/USDT={csv('a.csv')}", "--path", "ETH/USDT=none.csv", "--once"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UnreadableFile)
    assert not (home / "logs").exists()
