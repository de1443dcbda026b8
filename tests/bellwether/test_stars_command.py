"""`bellwether stars`: a file is measured without anything ingested, a snapshot is measured as it was folded."""

import json
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.reports import stars as measured
from flows.support.installation import Installation
from pipelines.contracts import BAR_FIELDS, OPEN_TIME
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import StateError, UnknownName
from pipelines.settings import Settings, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.stars import STARS

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS = load_params()
AT = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def minutes():
    spec = PARAMS.simulator.model_copy(update={"history_days": 20, "live_days": 0, "drift_after_live_days": None})
    return simulate(spec, tape=False).bars


@pytest.fixture(scope="module")
def file(minutes, tmp_path_factory):
    names = list(BAR_FIELDS[1:])
    frame = pd.DataFrame(minutes[:, 1:], columns=names)
    frame.insert(0, "open_time", pd.to_datetime(minutes[:, OPEN_TIME], unit="s", utc=True))
    path = tmp_path_factory.mktemp("market") / "minutes.parquet"
    frame.to_parquet(path)
    return path


@pytest.fixture
def installation(minutes, tmp_path):
    """A workspace as the features stage leaves it."""
    decision = resample(minutes, MINUTES, QUARTERS)
    folder = Settings(home=tmp_path).workspace / "artifacts" / "features"
    (folder / "SIM-USDT").mkdir(parents=True)
    for name, array in (("base", minutes), ("decision", decision), ("signals", SIGNALS.run(decision))):
        np.save(folder / "SIM-USDT" / f"{name}.npy", array)
    meta = {"grid": QUARTERS.to_dict(), "base_grid": MINUTES.to_dict(), "signal_catalogue_hash": SIGNALS.catalogue_hash}
    (folder / "meta.json").write_text(json.dumps({"symbols": ["SIM/USDT"], "markets": {"SIM/USDT": meta}}))
    return Installation(Settings(home=tmp_path), PARAMS, None)


def test_a_file_and_the_snapshot_of_its_bars_give_the_same_figures(installation, file):
    stored, read = measured.of_snapshot(installation, None), measured.of_file(file, "SIM/USDT", [], PARAMS, AT)
    assert stored.contributions.to_dict() == read.contributions.to_dict()
    assert (stored.symbol, stored.timeframe) == (read.symbol, read.timeframe) == ("SIM/USDT", "15m")
    assert read.contributions.bars == 20 * 96
    assert read.contributions.measured == 15  # what candles with taker volume allow to measure


def test_every_star_has_a_row_and_the_last_line_counts_against_chance(installation):
    found = measured.of_snapshot(installation, "SIM/USDT").contributions
    rows = measured.rows(found)
    assert [row[0] for row in rows] == [star.name for star in STARS] + ["rating >= 15", "rating >= 18"]
    assert dict(zip(found.stars, rows, strict=False))[found.stars[4]][3] == "inputs missing"
    assert f"of 15 stars that could be measured, {len(found.excluding_zero)} have" in measured.verdict(found)
    assert measured.verdict(found).endswith("; 0.8 would by chance")


def test_another_market_and_another_catalogue_are_refused_with_what_to_do(installation):
    with pytest.raises(UnknownName, match="--path"):
        measured.of_snapshot(installation, "ETH/USDT")
    described = installation.features / "meta.json"
    described.write_text(described.read_text().replace(SIGNALS.catalogue_hash, "other"))
    with pytest.raises(StateError, match="bellwether run --once"):
        measured.of_snapshot(installation, None)


def test_the_command_prints_json_and_nothing_else(file):
    done = CliRunner().invoke(app, ["stars", "SIM/USDT", "--path", str(file), "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["symbol"] == "SIM/USDT"
    assert len(answer["contributions"]["stars"]) == 21
    assert answer["contributions"]["expected_by_chance"] == 0.75
