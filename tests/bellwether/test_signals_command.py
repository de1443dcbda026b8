"""`bellwether signals`: every row, the inputs an unavailable signal lacks, onsets of the others; and `--score`."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH
from pipelines.data.timeframes import Grid
from pipelines.errors import BellwetherError
from pipelines.features.catalog import FEATURES
from pipelines.settings import settings
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.signal_registry import SIGNAL_REGISTRY, direction, onsets

QUARTERS = Grid("15m")

STEP_S = 900


def walk(n=600):
    rng = np.random.default_rng(5)
    close = 4e4 * np.exp(np.cumsum(rng.normal(0, 2e-3, n)))
    opened = np.r_[4e4, close[:-1]]
    high = np.maximum(opened, close) * (1 + np.abs(rng.normal(0, 1e-3, n)))
    low = np.minimum(opened, close) * (1 - np.abs(rng.normal(0, 1e-3, n)))
    volume = rng.lognormal(2, 0.5, n)
    time = 1.7040672e9 + STEP_S * np.arange(n)
    return np.column_stack([time, opened, high, low, close, volume, np.full(n, 9.0), *np.full((2, n), np.nan)])


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def snapshot(home):
    """A candle file with volume and funding, without taker volume or a book, as ingested; its signals (n, ks)."""
    bars, where = walk(), settings().workspace
    context = np.full((len(bars), CONTEXT_WIDTH), np.nan)
    context[:, CONTEXT_INDEX["funding_rate"]] = 1e-4
    arrays = {"base": bars, "decision": bars, "books": np.empty((len(bars), 2, 0, 3)), "context": context,
              "features": FEATURES.run(bars, None, context), "signals": SIGNALS.run(bars, None, context)}  # fmt: skip
    folder = where / "artifacts" / "features"
    for slug in ("BTC-USDT", "LTC-USDT"):
        (folder / slug).mkdir(parents=True)
        for name, array in arrays.items():
            np.save(folder / slug / f"{name}.npy", array[100:] if slug == "LTC-USDT" else array)
    grids = {"grid": QUARTERS.to_dict(), "base_grid": QUARTERS.to_dict()}
    meta = {"signal_columns": SIGNALS.columns, "feature_columns": FEATURES.columns,
            "symbols": ["BTC/USDT", "LTC/USDT"], "markets": {"BTC/USDT": grids, "LTC/USDT": grids}}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    return arrays["signals"]


def run(*words):
    done = CliRunner().invoke(app, ["signals", *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_every_row_is_listed_before_anything_was_ingested(home):
    found = json.loads(run("--json"))
    assert found["symbol"] is None
    assert {line["row"] for line in found["signals"]} == set(SIGNAL_REGISTRY)
    of = {line["signal"]: line for line in found["signals"]}
    assert of["cvd"]["status"] == "needs taker volume"
    assert of["ofi"]["needs"] == "context:order_flow"
    assert of["fvg"]["status"] == "needs prices"
    assert all(line["onsets"] is None for line in found["signals"])


def test_a_signal_without_its_input_names_it_and_one_with_it_has_its_onsets(snapshot):
    found = json.loads(run("BTC/USDT", "--json"))
    assert found["recorded"] == ["context:funding_rate", "volume"]
    of = {line["signal"]: line for line in found["signals"]}
    assert of["cvd"]["status"] == "unavailable: needs taker volume"
    assert of["ofi"]["status"] == "unavailable: needs order flow"
    assert of["smart_money"]["status"] == "unavailable: needs a tape of the book"  # volume is there
    assert of["cvd"]["onsets"] is None
    at = onsets(direction(snapshot, "fvg"))
    last = np.datetime64(int(1.7040672e9) + STEP_S * (int(at[-1]) + 1), "s").astype(str)
    assert (of["fvg"]["status"], of["fvg"]["onsets"]) == ("available", len(at))
    assert of["fvg"]["last"] == last[:16].replace("T", " ")
    assert of[None]["row"] == "S17"


def test_the_table_shows_what_the_json_holds(snapshot):
    shown = run()
    assert "BTC/USDT: 600 bars" in shown
    assert "S17" in shown


def test_scores_are_printed_and_drawn(snapshot, home):
    found = json.loads(run("--score", "--json"))
    of = {score["signal"]: score for score in found["scores"]}
    assert found["tested"] == sum(score["net_bps"]["n"] > 0 for score in found["scores"])
    assert of["fvg"]["onsets"] > 0
    assert of["fvg"]["net_bps"]["value"] == pytest.approx(of["fvg"]["gross_bps"]["value"] - found["cost_bps"])
    assert of["cvd"]["net_bps"]["value"] is None
    page = home / "reports" / "signals-BTC-USDT.html"
    assert found["page"] == str(page)
    assert "signals tested on 600 bars" in page.read_text()
    assert f"of {found['tested']} tested" in run("BTC/USDT", "--score").replace("\n", " ")


def test_another_market_is_refused_by_name(snapshot):
    done = CliRunner().invoke(app, ["signals", "ETH/USDT"])
    assert "no bars of 'ETH/USDT'" in str(done.exception)
    done = CliRunner().invoke(app, ["signals", "ETH/USDT", "--score"])
    assert "BTC/USDT, LTC/USDT" in str(done.exception)  # what there is


def test_each_market_of_the_universe_has_its_own_list_scores_and_chart(snapshot):
    assert json.loads(run("LTC/USDT", "--json"))["bars"] == 500
    scored = json.loads(run("LTC/USDT", "--score", "--json"))
    assert (scored["symbol"], scored["bars"]) == ("LTC/USDT", 500)
    drawn = json.loads(CliRunner().invoke(app, ["chart", "LTC/USDT", "--last", "550", "--json"]).stdout)
    assert (drawn["symbol"], drawn["bars"]) == ("LTC/USDT", 500)


def test_a_snapshot_of_another_catalogue_is_refused_with_the_remedy(snapshot):
    file = settings().workspace / "artifacts" / "features" / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"signal_columns": ["fvg.direction"]}))
    done = CliRunner().invoke(app, ["signals"])
    assert "run `bellwether run --once`" in str(done.exception)


@pytest.mark.parametrize("words", [["signals"], ["signals", "--score"], ["chart"]])
def test_the_workspace_of_a_release_that_named_no_grid_is_read_or_refused_with_the_remedy(snapshot, words):
    file = settings().workspace / "artifacts" / "features" / "meta.json"
    meta = json.loads(file.read_text())
    del meta["markets"], meta["symbols"]
    meta |= {"symbol": "BTC/USDT", "base_timeframe": "15m", "decision_timeframe": "15m"}
    file.write_text(json.dumps(meta))
    for array in (file.parent / "BTC-USDT").iterdir():
        array.rename(file.parent / array.name)
    (file.parent / "BTC-USDT").rmdir()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 or isinstance(done.exception, BellwetherError), repr(done.exception)
