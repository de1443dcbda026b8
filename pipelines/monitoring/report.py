"""The drift report of one judged block: a page, and a run of Evidently with our thresholds in its workspace.

Reference rows, distance and thresholds are those of `drift.detect`: page, run and alarm name the same drifted columns.
"""

import fcntl
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.contracts import Floats, utc
from pipelines.families import FAMILIES
from pipelines.models.reference import DriftReference
from pipelines.monitoring.drift import AlarmRates, BlockDrift, DriftResult

SHOWN = 10  # columns of a report: a run of all sixty takes 4 MB and 15 s, and nobody reads sixty histograms
SNAPSHOTS = "snapshots"  # folder of a project in Evidently's workspace, a file a run
NAMED = 4  # markets in the name of a project


@dataclass(frozen=True, slots=True)
class BlockReport:
    """Hold what a report shows of a block.

    since, until     close of its first and last row, market time
    columns          those shown: what drifted or vanished first, then the strongest
    reference, current  frames of these columns, one row a decision bar; NaN = missing
    thresholds       column → normed Wasserstein distance from which it is drifted; of columns judged in this block
    missing_limits   column → (lowest, highest) share missing that is no alarm
    """

    block: BlockDrift
    since: datetime
    until: datetime
    columns: tuple[str, ...]
    reference: pd.DataFrame
    current: pd.DataFrame
    thresholds: Mapping[str, float]
    missing_limits: Mapping[str, tuple[float, float]]


def newest_judged(result: DriftResult) -> BlockDrift | None:
    """Return the newest block of which anything could be judged; None before the first."""
    return next((block for block in reversed(result.blocks) if block.effects or block.missing), None)


def block_report(
    reference: DriftReference, rates: AlarmRates, block: BlockDrift, at_s: Floats, values: Floats
) -> BlockReport:
    """Return what a report shows of this block.

    rates   those the block was judged by
    at_s    (n,) closes of all live rows, epoch seconds; values: (n, k) the rows, columns as in the reference
    """
    thresholds = reference.thresholds(rates.values)
    columns = shown_columns(block, thresholds)
    positions, rows = [reference.columns.index(name) for name in columns], slice(block.start, block.start + block.n)
    limits = reference.missing_limits(rates.missing)
    return BlockReport(
        block=block,
        since=utc(float(at_s[rows][0])),
        until=utc(float(at_s[rows][-1])),
        columns=columns,
        reference=pd.DataFrame(reference.sample[:, positions], columns=list(columns)),
        current=pd.DataFrame(values[rows, positions], columns=list(columns)),
        thresholds={name: thresholds[name] for name in columns if name in block.effects},
        missing_limits={name: limits[name] for name in columns if name in limits},
    )


def shown_columns(block: BlockDrift, thresholds: Mapping[str, float]) -> tuple[str, ...]:
    """Return up to SHOWN columns: drifted and vanished ones in turn, the strongest first, then those nearest to it."""
    alarming = [name for pair in zip_longest(block.drifted, block.vanished) for name in pair if name is not None]
    nearest = sorted(block.effects, key=lambda name: -block.effects[name] / thresholds[name])
    return tuple(dict.fromkeys([*alarming, *nearest, *block.missing]))[:SHOWN]


def prediction_of(family: str) -> str:
    """Return the column of a run with a family's predictions in the block."""
    return f"prediction of {family}"


def drifted_of(family: str) -> str:
    """Return the column of a run with the share of a family's watched columns that drifted or vanished.

    Evidently's own count is named after columns and thresholds, which differ from run to run: it makes no line.
    """
    return f"share drifted of {family}"


def loss_of(family: str) -> str:
    """Return the column of a run with the losses of a family's predictions in the block, of outcomes known so far."""
    return f"loss of {family}"


def project_name(symbols: Sequence[str]) -> str:
    """Return the name of a universe's project in the workspace."""
    others = f" and {len(symbols) - NAMED} more" if len(symbols) > NAMED else ""
    return f"Bellwether: {', '.join(symbols[:NAMED])}{others}"


def add_run(
    found: BlockReport, scores: Mapping[str, Floats], file: Path, workspace: Path, project: str, name: str,
    tags: Sequence[str], metadata: Mapping[str, str],
) -> tuple[str, str]:  # fmt: skip
    """Add a run of Evidently on this block to a project of the workspace, and write its figures to `file`, JSON.

    scores  `drifted_of`, `prediction_of` or `loss_of` a family → (n,) its values in the block's rows; NaN = not known
    The stamp of the run is the market time at which the block was complete. Return (id of the project, id of the run).
    Evidently is imported here because that takes some 15 s. Its own page would repeat 4 MB of scripts in each report;
    its UI shows the run.
    """
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MeanValue, MissingValueCount
    from evidently.presets import DataDriftPreset
    from evidently.tests import gte, lte

    metrics: list[Any] = [
        MissingValueCount(column=column, share_tests=[gte(low), lte(high)])
        for column, (low, high) in found.missing_limits.items()
    ]
    known = {name: values for name, values in scores.items() if np.isfinite(values).any()}
    metrics += [MeanValue(column=name, tests=[]) for name in known]  # None would be tests of Evidently's own
    shown = list(found.thresholds)
    if shown:  # the preset refuses a column without values
        metrics.insert(
            0,
            DataDriftPreset(
                columns=shown,
                drift_share=1.0 / len(shown),  # one drifted column is enough, as for the alarm
                per_column_method=dict.fromkeys(shown, "wasserstein"),
                per_column_threshold={column: float(limit) for column, limit in found.thresholds.items()},
            ),
        )
    # without a definition a flag with few values would be treated as a category and tested by another method
    definition = DataDefinition(numerical_columns=[*found.columns, *known])
    frames = (found.current.assign(**known), found.reference.assign(**dict.fromkeys(known, np.nan)))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # no values: Evidently divides zero by zero
        sides = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
    run = Report(metrics, include_tests=True).run(
        *sides, timestamp=found.until, name=name, tags=list(tags), metadata=dict(metadata)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    run.save_json(str(file))
    with _one_writer(workspace):
        return _added_whole(run, workspace, project, name)


def _added_whole(run: Any, workspace: Path, project: str, name: str) -> tuple[str, str]:
    """Add a run to a project in a draft of the workspace, then move it into place by one rename.

    Evidently's UI reads every file of the workspace at each request, and answers 500 where one is there by half.
    """
    from evidently.ui.workspace import Workspace

    draft = workspace.with_name(f"{workspace.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that died meanwhile
    evidently = Workspace.create(str(draft))
    existing = Workspace.create(str(workspace)).search_project(project)
    if existing:
        kept = str(existing[0].id)
        shutil.copytree(workspace / kept, draft / kept, ignore=shutil.ignore_patterns(SNAPSHOTS))
    else:
        kept = str(_with_panels(evidently.create_project(project)).id)
    added = str(evidently.add_run(kept, run, name=name).id)
    if existing:
        snapshot = Path(kept, SNAPSHOTS, f"{added}.json")
        (workspace / snapshot).parent.mkdir(exist_ok=True)
        (draft / snapshot).replace(workspace / snapshot)
    else:
        (draft / kept).replace(workspace / kept)
    shutil.rmtree(draft)
    return kept, added


def set_aside_unreadable(workspace: Path) -> list[Path]:
    """Rename the files of a workspace that hold no whole JSON to `<name>.unreadable`; return the paths they had.

    Before 0.15.0 a process that died while it wrote a report left half of one, and Evidently's UI answered 500 from
    then on. Such a report has no page yet, so the next monitor writes it again if its block is still the newest.
    """
    broken = []
    with _one_writer(workspace):
        for file in sorted(workspace.glob(f"*/{SNAPSHOTS}/*.json")) + sorted(workspace.glob("*/*.json")):
            try:
                json.loads(file.read_bytes())
            except ValueError:
                file.rename(f"{file}.unreadable")
                broken.append(file)
    return broken


def _with_panels(project: Any) -> Any:
    """Give a new project its dashboard: what drifted, was predicted and lost, over market time, a line a family."""
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric

    def line(family: str, of: Callable[[str], str]) -> PanelMetric:
        """Return the mean of one of a family's columns."""
        return PanelMetric(legend=family, metric="MeanValue", metric_labels={"column": of(family)})

    all_of = {of: [line(family, of) for family in FAMILIES] for of in (drifted_of, prediction_of)}
    known = "of the predictions whose outcome was known when the block was complete"
    for title, about, size, values in (
        ("Share of columns drifted", "in the market that is furthest from its training", "full", all_of[drifted_of]),
        ("Mean prediction", "chance of the one class, or of the likeliest of several", "full", all_of[prediction_of]),
        *((f"Mean loss of {family}", known, "half", [line(family, loss_of)]) for family in FAMILIES),  # units differ
    ):
        project.dashboard.add_panel(
            DashboardPanelPlot(title=title, subtitle=about, size=size, values=values, plot_params={"plot_type": "line"})
        )
    return project


def remove_oldest_runs(workspace: Path, kept: int) -> int:
    """Remove the runs of each project beyond the newest `kept`; their ids are in order of time. Return how many."""
    folders = workspace.glob(f"*/{SNAPSHOTS}")
    if all(sum(1 for _ in folder.iterdir()) <= kept for folder in folders):
        return 0  # known without the 15 s that Evidently takes to import
    from evidently.ui.workspace import Workspace

    removed = 0
    with _one_writer(workspace):
        evidently = Workspace.create(str(workspace))
        for project in evidently.list_projects():
            for run in sorted(evidently.list_runs(project.id), key=str)[:-kept]:
                evidently.delete_run(project.id, run)
                removed += 1
    return removed


@contextmanager
def _one_writer(workspace: Path) -> Iterator[None]:
    """Wait until no other process writes to the workspace, by a lock on `<workspace>.lock`.

    Evidently rewrites its files in place: a second report at that moment would read half of one.
    """
    workspace.parent.mkdir(parents=True, exist_ok=True)
    with workspace.with_name(f"{workspace.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
