"""`bellwether stress`: figures, page and JSON, in an MLflow run that a person finds; and what to do before a turn."""

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from support.registry import empty_registry, registry_in
from typer.testing import CliRunner

from bellwether.cli import output
from bellwether.cli.main import app
from flows import stress
from flows.support.installation import open_installation
from pipelines.contracts import OPEN_TIME
from pipelines.errors import BellwetherError, ServiceDown, StateError, UnreadableFile
from pipelines.evaluation.crises import CRISES
from pipelines.evaluation.stress import SCENARIOS
from pipelines.settings import settings

__all__ = ["empty_registry"]
STEP_S = 3600
LIMIT = 0.08


def walk(n, step_s, start, sd, seed=5):
    rng = np.random.default_rng(seed)
    close = 4e4 * np.exp(np.cumsum(rng.normal(0, sd, n)))
    opened = np.r_[4e4, close[:-1]]
    time = start + step_s * np.arange(n)
    return np.column_stack([time, opened, np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999, close,
                            rng.lognormal(2, 0.5, n), np.full(n, 9.0), *np.full((2, n), np.nan)])  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    for name in ("MLFLOW", "PREFECT"):
        monkeypatch.setenv(f"BELLWETHER_{name}_PORT", "9")  # nothing listens there
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.fixture
def installation(home):
    """A snapshot of 320 days with one level of a book at each bar, as the features stage leaves it."""
    bars, where = walk(320 * 24, STEP_S, 1.7040672e9, 4e-3), settings().workspace
    books = np.full((len(bars), 2, 1, 3), np.nan)
    books[:, 0, 0, 0], books[:, 1, 0, 0] = 0.9999 * bars[:, 4], 1.0001 * bars[:, 4]
    folder = where / "artifacts" / "features"
    for slug, factor in (("BTC-USDT", 1.0), ("ETH-USDT", 0.05)):
        (folder / slug).mkdir(parents=True)
        prices = bars.copy()
        prices[:, 1:5] *= factor
        np.save(folder / slug / "decision.npy", prices)
        np.save(folder / slug / "books.npy", books * factor)
    markets = {"BTC/USDT": {}, "ETH/USDT": {}}
    (folder / "meta.json").write_text(
        json.dumps({"decision_timeframe": "1h", "symbols": list(markets), "markets": markets})
    )
    return open_installation()


@pytest.fixture
def crisis(tmp_path):
    """Hourly bars of one of the crises' months, as a file."""
    bars = walk(31 * 24, 3600, CRISES["2020-03"].since.timestamp(), 0.02)
    frame = pd.DataFrame(bars[:, 1:6], columns=["open", "high", "low", "close", "volume"])
    frame.insert(0, "open_time", pd.to_datetime(bars[:, OPEN_TIME], unit="s", utc=True))
    frame.to_parquet(tmp_path / "march.parquet")
    return tmp_path / "march.parquet"


def run(*words):
    done = CliRunner().invoke(app, ["stress", *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_a_dry_run_needs_no_server_and_writes_nothing(installation, home, crisis):
    before = sorted(home.rglob("*"))
    answer = json.loads(run("--crises", str(crisis), "--equity", "100000", "--dry-run", "--json"))
    assert sorted(home.rglob("*")) == before
    assert (answer["symbol"], answer["drawdown_limit"]) == ("BTC/USDT", LIMIT)
    assert stress.gather(installation, None, None, "ETH/USDT").symbols == ("ETH/USDT",)
    found = {result["scenario"]: result for result in answer["cases"][0]["results"]}
    assert list(found) == [*SCENARIOS, *(f"reopened:{name}" for name in CRISES)]
    known = {name for name, result in found.items() if result["absent"] is None}
    assert known == {"crisis:2020-03", "reopened:2020-03", "bootstrap", "correlation_breakdown", "liquidity_drought"}
    assert "hold 0 of its 744" in found["crisis:2021-05"]["absent"]
    assert "half the spread widens by" in found["liquidity_drought"]["detail"]
    assert found["bootstrap"]["loss"]["low"] <= found["bootstrap"]["loss"]["value"]


def test_without_a_file_the_crises_name_the_option_and_the_table_shows_it(installation, monkeypatch):
    monkeypatch.setattr(output.out, "width", 500)
    shown = run("--dry-run")
    assert "--crises FILE" in shown
    assert "--equity AMOUNT" in shown
    assert "no file of crises" in shown
    assert "under the limit" in shown


def test_page_json_and_metrics_are_in_one_run_that_mlflow_shows(
    installation, crisis, tmp_path, monkeypatch, empty_registry
):
    monkeypatch.chdir(tmp_path)  # a store without a server stores artifacts next to itself
    installation.tracking = registry_in(tmp_path, empty_registry)
    studied = stress.study(installation, crisis, 1e5)
    files = stress.write(studied, tmp_path / "report")
    link = stress.log(installation, studied, files, datetime(2025, 1, 2, tzinfo=UTC))
    from mlflow import MlflowClient

    client = MlflowClient(installation.tracking.url)
    experiment = client.get_experiment_by_name("bellwether")
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'stress'")
    assert f"/experiments/{experiment.experiment_id}/runs/{run.info.run_id}/artifacts" in link
    assert (run.info.run_name, run.info.status) == ("stress-BTC-USDT-20250102T000000", "FINISHED")
    assert {file.path for file in client.list_artifacts(run.info.run_id, "stress")} == {
        "stress/stress.html", "stress/stress.json",
    }  # fmt: skip
    assert run.data.metrics["long.no_stop.crisis.2020-03"] > run.data.metrics["long.stop.crisis.2020-03"] > 0.0
    page = files[0].read_text()
    assert page.count('<div class="figure">') >= 3
    assert page.count('id="plotly-gzip"') == 1
    assert "<script src=" not in page  # needs no network
    assert json.loads(files[1].read_text()) == json.loads(json.dumps(studied.to_dict()))


def test_finer_bars_of_a_crisis_are_made_hourly(tmp_path):
    bars = walk(6 * 60, 60, 1.7040672e9, 1e-4)
    frame = pd.DataFrame(bars[:, 1:6], columns=["open", "high", "low", "close", "volume"])
    frame.insert(0, "open_time", pd.to_datetime(bars[:, OPEN_TIME], unit="s", utc=True))
    frame.to_parquet(tmp_path / "minutes.parquet")
    made, step_s = stress.crisis_bars(tmp_path / "minutes.parquet", datetime.now(UTC))
    assert (len(made), step_s) == (6, 3600.0)


def test_before_the_first_turn_it_names_the_command_and_a_wrong_file_is_refused_at_once(home, installation, tmp_path):
    with pytest.raises(UnreadableFile, match="Check the path"):
        raise_of("--crises", str(tmp_path / "nowhere.parquet"))
    with pytest.raises(ServiceDown, match="bellwether up"):
        raise_of()
    (settings().workspace / "artifacts" / "features" / "meta.json").unlink()
    with pytest.raises(StateError, match="bellwether run --once"):
        raise_of()


def raise_of(*words):
    done = CliRunner().invoke(app, ["stress", *words])
    assert isinstance(done.exception, BellwetherError), (done.output, done.exception)
    raise done.exception
