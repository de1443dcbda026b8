"""The page of each experiment: under the home, in the challenger's run in MLflow, and linked in Prefect."""

import json
from pathlib import Path

from prefect.artifacts import create_link_artifact

from flows.support import experiments
from flows.support.installation import Installation
from pipelines.contracts import utc
from pipelines.evaluation.experiment_page import write_experiment_page
from pipelines.evaluation.experiment_view import ExperimentView
from pipelines.store import RUNNING

FIGURES = "experiment.json"


def write_pages(installation: Installation, family: str) -> list[Path]:
    """Write the pages of a family's experiments that changed since they were written; return their paths."""
    written = []
    for experiment in installation.store.experiments(family):
        page = experiments.page_of(installation, experiment)
        figures = page.with_name(FIGURES)
        state = installation.store.experiment_state(experiment.number)
        if state not in RUNNING and figures.is_file() and json.loads(figures.read_text())["state"] == state:
            continue  # it has ended, and its page says so
        view = experiments.view_of(installation, experiment)
        content = json.dumps(view.summary(), indent=1) + "\n"
        if figures.is_file() and figures.read_text() == content:
            continue
        write_page(installation, experiments.view_of(installation, experiment, with_trades=True))
        figures.write_text(content)
        written.append(page)
    return written


def write_page(installation: Installation, view: ExperimentView) -> Path:
    """Write the page of an experiment, log it to the challenger's run and link it in Prefect."""
    experiment = view.experiment
    title, page, links = experiments.title_of(experiment), experiments.page_of(installation, experiment), {}
    version = None
    if experiment.family != experiments.POLICY_ARMS:
        version = installation.tracking.version(experiment.family, experiment.challenger)
        champion = installation.tracking.version(experiment.family, experiment.champion)
        links = {
            f"challenger version {experiment.challenger} in MLflow": installation.tracking.run_link(version.run_id),
            f"champion version {experiment.champion} in MLflow": installation.tracking.run_link(champion.run_id),
        }
    write_experiment_page(page, f"{title[:1].upper()}{title[1:]}", view, links)
    if version is not None:
        metrics = {f"ab.{name}": float(view.figures[name]) for name in ("gain", "low", "high", "e_value")
                   if view.figures[name] is not None}  # fmt: skip
        newest = utc(view.blocks[-1].start_s) if view.blocks else experiment.begun
        folder = f"{experiments.PAGES}/{experiment.number}"
        installation.tracking.log_report(version.run_id, [page], folder, metrics, newest)
        create_link_artifact(
            key=f"experiment-{experiment.number}", link=links[next(iter(links))], link_text=title,
            description=f"{view.state}. {view.next_step()} The page is in the run's artifacts, {folder}/{page.name}.",
        )  # fmt: skip
    return page
