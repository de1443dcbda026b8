"""The drift report a person reads: Evidently's page and JSON, with our thresholds, also in the Evidently workspace.

Same reference rows, same distance, same thresholds as `drift.detect`, so page and alarm call the same columns drifted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from pipelines.errors import BadColumns, NotEnoughData

PROJECT = "Bellwether"


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """`run_id` names the run in the Evidently workspace; `left_out` the columns without a value on one side."""

    html: Path
    json: Path
    project_id: str
    run_id: str
    left_out: tuple[str, ...]


def write_report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    thresholds: Mapping[str, float],
    directory: Path,
    workspace: Path,
    as_of: datetime,
    name: str,
) -> ReportFiles:
    """Write `drift.html` and `drift.json` into `directory` and add the run to the workspace's project "Bellwether".

    reference, current  frames of one row a decision bar; NaN = missing, dropped column by column. Give `detect`'s own
                        sample and block, so that the numbers are the same
    thresholds          {column: normed Wasserstein distance from which it is drifted}; only these columns are shown
    Raises              BadColumns naming what a frame lacks; NotEnoughData if no column has values on both sides
    Evidently takes some 15 s to import, so that happens here; its page holds about 6 MB of scripts.
    """
    for side, frame in (("reference", reference), ("current", current)):
        lacking = [column for column in thresholds if column not in frame]
        if lacking:
            raise BadColumns(f"{side} rows lack {', '.join(lacking)}. Take both sides from the same feature catalogue.")
    shown = [c for c in thresholds if reference[c].notna().any() and current[c].notna().any()]
    if not shown:
        raise NotEnoughData(f"none of {len(thresholds)} columns has values on both sides; there is nothing to report")

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset
    from evidently.ui.workspace import Workspace

    # without a definition a flag with few values would be taken for a category and tested by another method
    definition = DataDefinition(numerical_columns=shown)
    preset = DataDriftPreset(
        columns=shown,
        drift_share=1.0 / len(shown),  # one column is enough, as it is for the alarm
        per_column_method=dict.fromkeys(shown, "wasserstein"),
        per_column_threshold={column: float(thresholds[column]) for column in shown},
    )
    run = Report([preset], include_tests=True).run(
        Dataset.from_pandas(current[shown], data_definition=definition),
        Dataset.from_pandas(reference[shown], data_definition=definition),
        timestamp=as_of,
        name=name,
    )
    directory.mkdir(parents=True, exist_ok=True)
    html, data = directory / "drift.html", directory / "drift.json"
    run.save_html(str(html))
    run.save_json(str(data))

    shelf = Workspace.create(str(workspace))
    known = shelf.search_project(PROJECT)
    project = known[0] if known else shelf.create_project(PROJECT)
    reference_to_run = shelf.add_run(project.id, run, name=name)
    left_out = tuple(column for column in thresholds if column not in shown)
    return ReportFiles(html, data, str(project.id), str(reference_to_run.id), left_out)
