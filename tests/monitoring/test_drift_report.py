"""The Evidently report shows the numbers of `detect`."""

import json
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import BadColumns, NotEnoughData
from pipelines.models.reference import fit_reference
from pipelines.monitoring.drift import AlarmRates, detect
from pipelines.monitoring.report import _one_writer, write_report
from pipelines.settings import load_params

AS_OF = datetime(2025, 1, 12, tzinfo=UTC)
COLUMNS = ("range", "tiny", "flag", "lost")
PARAMS = load_params().drift.model_copy(update={"block_bars": 100})
RATES = AlarmRates(values=0.005, missing=0.0025)


@pytest.fixture(scope="module")
def market() -> np.ndarray:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((4100, 4)) * [1.0, 1e-5, 1.0, 1.0]  # the second under Evidently's floor of 1e-3
    values[:, 2] = rng.random(4100) < 0.3
    values[4000:, 0] += 1.5
    values[4010:4030, 0] = np.nan
    values[4000:, 3] = np.nan
    return values


def test_the_page_shows_our_numbers_and_drifted_columns_and_is_in_the_workspace(market, tmp_path) -> None:
    reference = fit_reference(market[:4000], COLUMNS, PARAMS, seed=7)
    block = detect(reference, market[4000:], RATES).blocks[0]
    sides = [pd.DataFrame(x, columns=list(COLUMNS)) for x in (reference.sample, market[4000:])]
    limits = (reference.thresholds(RATES.values), reference.missing_limits(RATES.missing))
    written = [
        write_report(*sides, *limits, tmp_path / name, tmp_path / "evidently", AS_OF, name)
        for name in ("first", "second")
    ]
    report = json.loads(written[0].json.read_text())
    effects = {m["config"]["column"]: m["value"] for m in report["metrics"] if "ValueDrift" in m["metric_name"]}
    assert effects == pytest.approx(block.effects, rel=1e-9)
    failed = {
        (test["metric_config"]["params"]["column"], "missing" in test["name"])
        for test in report["tests"]
        if test["status"] == "FAIL" and "column" in test["metric_config"]["params"]
    }
    assert set(block.drifted) == {"range"}
    assert set(block.vanished) == {"lost"}
    assert {("range", False), ("lost", True)} <= failed <= {("range", False), ("range", True), ("lost", True)}
    shares = {m["config"]["column"]: m["value"]["share"] for m in report["metrics"] if "Missing" in m["metric_name"]}
    assert shares == pytest.approx(block.missing)
    assert written[0].left_out == ("lost",)
    assert "range" in written[0].html.read_text()

    from evidently.ui.workspace import Workspace

    evidently = Workspace.create(str(tmp_path / "evidently"))
    assert [p.name for p in evidently.list_projects()] == ["Bellwether"]  # created once
    runs = evidently.list_runs(evidently.list_projects()[0].id)
    assert {str(run) for run in runs} == {files.run_id for files in written}


def test_a_lacking_column_and_an_empty_side_are_refused_before_anything_is_written(tmp_path) -> None:
    frame = pd.DataFrame({"range": [1.0, 2.0]})
    place = (tmp_path / "out", tmp_path / "evidently", AS_OF, "x")
    with pytest.raises(BadColumns, match="current rows lack range"):
        write_report(frame, frame.rename(columns={"range": "other"}), {"range": 0.1}, {}, *place)
    with pytest.raises(NotEnoughData, match="1 columns"):
        write_report(frame, frame * np.nan, {"range": 0.1}, {}, *place)
    assert list(tmp_path.iterdir()) == []


def test_of_two_reports_at_once_the_second_waits_for_the_first(tmp_path) -> None:
    """Evidently rewrites its files in place, and a scheduled monitor may run next to that of a turn."""
    order: list[str] = []

    def write() -> None:
        with _one_writer(tmp_path / "evidently"):
            order.append("second")

    with _one_writer(tmp_path / "evidently"):
        other = threading.Thread(target=write)
        other.start()
        time.sleep(0.2)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]
