"""The drift report: Evidently's page and JSON with our thresholds, also in the Evidently workspace.

Reference rows, distance and thresholds are those of `drift.detect`, so page and alarm name the same drifted columns.
"""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.errors import BadColumns, NotEnoughData

PROJECT = "Bellwether"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Hold where a report is: files, run in the Evidently workspace, and the columns left out for lack of values."""

    html: Path
    json: Path
    run_id: str
    left_out: tuple[str, ...]


def write_report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    thresholds: Mapping[str, float],
    missing_limits: Mapping[str, tuple[float, float]],
    directory: Path,
    workspace: Path,
    as_of: datetime,
    name: str,
) -> ReportFiles:
    """Write `drift.html` and `drift.json` into `directory` and add the run to the workspace's project "Bellwether".

    reference, current  frames of one row a decision bar; NaN = missing, dropped column by column. Pass `detect`'s own
                        sample and block, so that the numbers are the same
    thresholds          {column: normed Wasserstein distance from which it is drifted}; only these columns are shown
    missing_limits      {column: (lowest, highest) share missing that is no alarm}; a column without values is shown too
    Raises              BadColumns naming what a frame lacks; NotEnoughData if there is nothing to show
    Evidently is imported here because that takes some 15 s; its page contains about 6 MB of scripts.
    """
    for side, frame in (("reference", reference), ("current", current)):
        lacking = [column for column in {**thresholds, **missing_limits} if column not in frame]
        if lacking:
            raise BadColumns(f"{side} rows lack {', '.join(lacking)}. Pass rows of the same feature catalogue.")
    shown = [c for c in thresholds if reference[c].notna().any() and current[c].notna().any()]
    if not shown and not missing_limits:
        raise NotEnoughData(
            f"none of {len(thresholds)} columns has values on both sides; fill the missing features first"
        )

    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MissingValueCount
    from evidently.presets import DataDriftPreset
    from evidently.tests import gte, lte
    from evidently.ui.workspace import Workspace

    # without a definition a flag with few values would be treated as a category and tested by another method
    columns = list(dict.fromkeys([*shown, *missing_limits]))
    definition = DataDefinition(numerical_columns=columns)
    metrics = [
        MissingValueCount(column=column, share_tests=[gte(low), lte(high)])
        for column, (low, high) in missing_limits.items()
    ]
    if shown:  # the preset refuses a column without values
        metrics.insert(
            0,
            DataDriftPreset(
                columns=shown,
                drift_share=1.0 / len(shown),  # one drifted column is enough, as for the alarm
                per_column_method=dict.fromkeys(shown, "wasserstein"),
                per_column_threshold={column: float(thresholds[column]) for column in shown},
            ),
        )
    with np.errstate(invalid="ignore"):  # of a column without values Evidently divides zero by zero
        sides = [Dataset.from_pandas(frame[columns], data_definition=definition) for frame in (current, reference)]
    run = Report(metrics, include_tests=True).run(
        *sides,
        timestamp=as_of,
        name=name,
    )
    directory.mkdir(parents=True, exist_ok=True)
    html, data = directory / "drift.html", directory / "drift.json"
    run.save_html(str(html))
    run.save_json(str(data))

    with _one_writer(workspace):
        evidently = Workspace.create(str(workspace))
        existing = evidently.search_project(PROJECT)
        project = existing[0] if existing else evidently.create_project(PROJECT)
        reference_to_run = evidently.add_run(project.id, run, name=name)
    left_out = tuple(column for column in thresholds if column not in shown)
    return ReportFiles(html, data, str(reference_to_run.id), left_out)


@contextmanager
def _one_writer(workspace: Path) -> Iterator[None]:
    """Wait until no other process writes to the workspace, by a lock on `<workspace>.lock`.

    Evidently rewrites its files in place: a second report at that moment would read half of one.
    """
    workspace.parent.mkdir(parents=True, exist_ok=True)
    with workspace.with_name(f"{workspace.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
