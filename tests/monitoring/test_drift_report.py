"""The drift report of a block: page and run of Evidently show the numbers of `detect`, once for each judged block."""

import json
import shutil
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from flows import monitor
from flows.retention import REPORTS, old_reports
from flows.support import drift_reports, watches
from pipelines.families import FAMILIES
from pipelines.models.reference import fit_reference
from pipelines.monitoring.drift import AlarmRates, detect
from pipelines.monitoring.drift_page import MarketLine, histograms, write_drift_page
from pipelines.monitoring.report import (
    SHOWN,
    _one_writer,
    add_run,
    block_report,
    project_name,
    remove_oldest_runs,
    set_aside_unreadable,
)
from pipelines.settings import load_params
from tests.support.watched_home import BLOCK, START, SYMBOL, WatchedHome, feature_rows

ENDED = datetime(2025, 1, 12, tzinfo=UTC)  # market time
COLUMNS = ("range", "tiny", "flag", "lost", *(f"column_{i}" for i in range(12)))
SCORES = {
    "prediction of validator": np.linspace(0.4, 0.6, 100), "loss of validator": np.full(100, np.nan),
    "share drifted of validator": np.full(100, 0.125), "loss of regime": np.where(np.arange(100) < 80, 0.25, np.nan),
}  # fmt: skip
PARAMS = load_params().drift.model_copy(update={"block_bars": 100})
RATES = AlarmRates(values=0.005, missing=0.0025)


@pytest.fixture(scope="module")
def market() -> np.ndarray:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((4100, len(COLUMNS)))
    values[:, 1] *= 1e-5  # under Evidently's floor of 1e-3
    values[:, 2] = rng.random(4100) < 0.3
    values[4000:, 0] += 1.5
    values[4010:4030, 0] = np.nan
    values[4000:, 3] = np.nan
    return values


@pytest.fixture(scope="module")
def judged(market):
    reference = fit_reference(market[:4000], COLUMNS, PARAMS, seed=7)
    block = detect(reference, market[4000:], RATES).blocks[0]
    at_s = ENDED.timestamp() - 900.0 * np.arange(100)[::-1]
    return block, block_report(reference, RATES, block, at_s, market[4000:])


@pytest.fixture(scope="module")
def run(judged, tmp_path_factory):
    """Two runs of one block in one workspace: (its folder, figures of the first, ids of project and run)."""
    folder, (_, found) = tmp_path_factory.mktemp("report"), judged
    made = [
        add_run(found, SCORES, folder / name / "drift.json", folder / "evidently", "Bellwether: SIM/USDT", name,
                ["validator", "SIM/USDT", "drift"], {"champion validator": "3"})
        for name in ("first", "second")
    ]  # fmt: skip
    return folder, json.loads((folder / "first" / "drift.json").read_text()), made


def test_the_failed_tests_of_evidently_are_our_drifted_columns(judged, run):
    (block, found), (_, figures, _) = judged, run
    effects = {m["config"]["column"]: m["value"] for m in figures["metrics"] if "ValueDrift" in m["metric_name"]}
    assert effects == pytest.approx({name: block.effects[name] for name in found.thresholds}, rel=1e-9)
    failed = {
        (test["metric_config"]["params"]["column"], "missing" in test["name"])
        for test in figures["tests"]
        if test["status"] == "FAIL" and "column" in test["metric_config"]["params"]
    }
    assert set(block.drifted) == {"range"}
    assert set(block.vanished) == {"lost"}
    assert block.share_drifted == 2 / len(COLUMNS)
    # the share missing of `range` is over its limit in one half of the block only, which is no alarm
    assert {("range", False), ("lost", True)} <= failed <= {("range", False), ("range", True), ("lost", True)}
    shares = {m["config"]["column"]: m["value"]["share"] for m in figures["metrics"] if "Missing" in m["metric_name"]}
    assert shares == pytest.approx({name: block.missing[name] for name in found.missing_limits})


def test_ten_columns_are_shown_what_drifted_and_vanished_first(judged):
    _, found = judged
    assert found.columns[:2] == ("range", "lost")
    assert len(found.columns) == SHOWN < len(COLUMNS)
    assert "lost" not in found.thresholds  # no value, so no distance


def test_a_run_is_small_carries_market_time_and_who_it_is_about_and_its_project_is_made_once(run):
    from evidently.ui.workspace import Workspace

    folder, _, made = run
    evidently = Workspace.create(str(folder / "evidently"))
    projects = evidently.list_projects()
    assert [p.name for p in projects] == ["Bellwether: SIM/USDT"]
    assert {str(one) for one in evidently.list_runs(projects[0].id)} == {run_id for _, run_id in made}
    kept = evidently.get_run(*made[0])
    assert kept.timestamp == ENDED.replace(tzinfo=kept.timestamp.tzinfo)
    assert set(kept.tags) == {"validator", "SIM/USDT", "drift"}
    assert kept.metadata["champion validator"] == "3"
    sizes = [file.stat().st_size for file in (folder / "evidently").rglob("snapshots/*")]
    assert len(sizes) == 2
    assert max(sizes) < 1_000_000


def test_a_run_has_the_mean_prediction_and_loss_of_its_families_and_a_project_panels_of_them(run):
    from evidently.ui.workspace import Workspace

    folder, figures, made = run
    means = {m["config"]["column"]: m["value"] for m in figures["metrics"] if "MeanValue" in m["metric_name"]}
    assert means == pytest.approx(
        {"prediction of validator": 0.5, "share drifted of validator": 0.125, "loss of regime": 0.25}
    )  # no loss known: no figure
    dashboard = Workspace.create(str(folder / "evidently")).get_dashboard(made[0][0])
    assert [panel.title for panel in dashboard.panels] == [
        "Share of columns drifted", "Mean prediction", *(f"Mean loss of {family}" for family in FAMILIES)
    ]  # fmt: skip
    assert {value.legend for value in dashboard.panels[0].values} == set(FAMILIES)


def test_the_page_is_small_and_names_block_columns_markets_and_links(judged, tmp_path):
    block, found = judged
    markets = [
        MarketLine("SIM/USDT", block, "alarm since <now>"),
        MarketLine("SIMB/USDT", None, "100 rows, 288 needed"),
    ]
    page = write_drift_page(
        tmp_path / "new" / "drift.html", "Inputs of validator", found, ["drift: range & lost"], markets,
        {"Run in Evidently": "http://127.0.0.1:8001/projects/p/reports/r"}, histograms(found),
    )  # fmt: skip
    text = page.read_text()
    assert len(text) < 400_000
    for shown in (
        "2025-01-11 23:15 to 2025-01-12 00:00".replace("2025-01-11 23:15", f"{found.since:%Y-%m-%d %H:%M}"),
        "drift: range &amp; lost", "alarm since &lt;now&gt;", "share missing changed", "<svg", "288 needed",
        "href='http://127.0.0.1:8001/projects/p/reports/r'", "2 of 16 watched columns",
    ):  # fmt: skip
        assert shown in text, shown
    assert "<script" not in text
    assert [each.name for each in page.parent.iterdir()] == ["drift.html"]  # no draft is left


def shown_in_the_ui(workspace: Path) -> dict[str, list[str]]:
    """Return project → its runs as Evidently's UI reads them at each request; raises where it would answer 500."""
    from evidently.ui.service.storage.local.base import LocalState

    return {
        str(project): sorted(map(str, runs))
        for project, runs in LocalState.load(str(workspace), None).snapshots.items()
    }


@pytest.mark.parametrize("project", ["Bellwether: SIM/USDT", "Bellwether: another"])
def test_a_process_that_dies_while_it_writes_a_run_leaves_none_of_it(judged, run, tmp_path, monkeypatch, project):
    from evidently.ui.storage.local.base import LocalState

    folder = tmp_path
    shutil.copytree(run[0] / "evidently", folder / "evidently")
    before = shown_in_the_ui(folder / "evidently")

    def dies(self, project_id, snapshot_id, snapshot):
        self.location.makedirs(self._snapshot_dir(project_id))
        with self.location.open(self._snapshot_path(project_id, snapshot_id), "w") as file:
            file.write('{"id": "half of')
        raise KeyboardInterrupt

    written = folder / "died" / "drift.json", folder / "evidently", project, "died", ["drift"], {}
    with monkeypatch.context() as patch:
        patch.setattr(LocalState, "write_snapshot", dies)
        with pytest.raises(KeyboardInterrupt):
            add_run(judged[1], SCORES, *written)
    assert shown_in_the_ui(folder / "evidently") == before
    kept, added = add_run(judged[1], SCORES, *written)
    assert added in shown_in_the_ui(folder / "evidently")[kept]
    assert not (folder / "evidently.draft").exists()


def test_half_a_report_of_an_earlier_release_is_set_aside_and_the_ui_answers_again(run, tmp_path):
    folder, _, _ = run
    shutil.copytree(folder / "evidently", tmp_path / "evidently")
    before = shown_in_the_ui(tmp_path / "evidently")
    project = next(name for name, runs in before.items() if len(runs) > 1)
    snapshot = tmp_path / "evidently" / project / "snapshots" / f"{before[project][0]}.json"
    snapshot.write_bytes(snapshot.read_bytes()[:1000])
    begun = tmp_path / "evidently" / str(uuid.uuid4()) / "metadata.json"
    begun.parent.mkdir()
    begun.write_text("")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        shown_in_the_ui(tmp_path / "evidently")
    assert set(set_aside_unreadable(tmp_path / "evidently")) == {snapshot, begun}
    assert shown_in_the_ui(tmp_path / "evidently") == before | {project: before[project][1:]}
    assert set_aside_unreadable(tmp_path / "evidently") == []
    assert set_aside_unreadable(tmp_path / "absent") == []


def test_the_oldest_runs_go_and_the_ui_still_reads_the_project(judged, run):
    from evidently.ui.workspace import Workspace

    folder, _, made = run
    assert remove_oldest_runs(folder / "evidently", 2) == 0
    assert remove_oldest_runs(folder / "evidently", 1) == 1
    assert remove_oldest_runs(folder / "absent", 1) == 0
    evidently = Workspace.create(str(folder / "evidently"))
    assert [str(each) for each in evidently.list_runs(made[0][0])] == [made[1][1]]


def test_a_project_is_named_after_its_universe():
    assert project_name(("A/B", "C/D")) == "Bellwether: A/B, C/D"
    assert project_name(tuple(f"S{i}/USDT" for i in range(16))).endswith("S3/USDT and 12 more")


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


# ---- of a running installation ---------------------------------------------------------------------------------------


def watched(home):
    """Return the watch of the validator now."""
    return watches.family_watch(
        home.installation, watches.model_under_watch(home.installation, "validator"), home.symbols
    )


def test_a_block_is_reported_once_it_is_complete_and_only_once(tmp_path, monkeypatch):
    home = WatchedHome(tmp_path, monkeypatch)
    home.serve(feature_rows(BLOCK - 1, 3))
    assert drift_reports.report_drift(home.installation, [watched(home)]) == {}
    home.serve(feature_rows(1, 4))
    first = drift_reports.report_drift(home.installation, [watched(home)])["validator"]
    ended = START + BLOCK * timedelta(minutes=15)
    assert first.relative_to(tmp_path).parts == ("reports", "drift", "validator-1", f"{ended:%Y-%m-%d}", "drift.html")
    assert "no drift" in first.read_text()
    written = first.stat().st_mtime_ns
    home.serve(feature_rows(5, 5))
    assert drift_reports.report_drift(home.installation, [watched(home)])["validator"].stat().st_mtime_ns == written
    home.serve(feature_rows(BLOCK, 6) + 4.0)
    mine = watched(home)
    monitor.reasons_of(home.installation, mine)  # raises the alarm, which names the page that comes next
    second = drift_reports.report_drift(home.installation, [mine])["validator"]
    assert second != first
    alarm = next(one for one in home.store.alarms() if one.kind == "drift")
    assert alarm.detail.endswith(f"; report: {second.relative_to(tmp_path)}")
    assert f"<li>alarm {alarm.id}, raised " in second.read_text()
    assert f"Inputs of validator version 1, {SYMBOL}: drift" in second.read_text()
    assert len(list(tmp_path.glob("evidently/*/snapshots/*"))) == 2


def test_families_that_saw_the_same_rows_share_a_run_and_each_has_its_page(tmp_path, monkeypatch):
    home = WatchedHome(tmp_path, monkeypatch)
    home.serve(feature_rows(BLOCK, 3))
    mine = watched(home)
    model = replace(mine.model, line=replace(mine.model.line, family="pattern"))
    other = replace(mine, model=model)
    pages = drift_reports.report_drift(home.installation, [mine, other])
    assert set(pages) == {"validator", "pattern"}
    assert all(page.is_file() and (page.parent / "drift.json").is_file() for page in pages.values())
    scores = [json.loads((page.parent / "score.json").read_text()) for page in pages.values()]
    assert all(set(each) == {"score", "threshold"} for each in scores)
    assert len(list(tmp_path.glob("evidently/*/snapshots/*"))) == 1


def test_retention_keeps_the_newest_drift_reports_of_all_versions_together(tmp_path, monkeypatch):
    home = WatchedHome(tmp_path, monkeypatch)
    days = [f"{START + timedelta(days=i):%Y-%m-%d}" for i in range(REPORTS * len(FAMILIES) + 2)]
    for i, day in enumerate(days):
        (tmp_path / "reports" / "drift" / f"validator-{1 + i // 50}" / day).mkdir(parents=True)
    assert [one.name for one in old_reports(home.installation)] == days[:2]
