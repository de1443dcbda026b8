"""Train: DVC decides what is stale, families are fitted side by side, each candidate becomes a version in MLflow."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.support.checked_out import checked_out
from flows.support.home_copy import bring, keep_version
from flows.support.installation import Installation, now, open_installation, workspace_lease
from flows.support.progress import line_progress, report_progress, run_progress, step
from flows.support.run_names import rename_run, run_name, with_versions
from flows.support.stage_command import reproduce, run_stage
from pipelines import versioning
from pipelines.contracts import Model
from pipelines.errors import BellwetherError, NotEnoughData, StateError
from pipelines.evaluation.curves import curves
from pipelines.evaluation.report import figure_rows, flat_metrics
from pipelines.families import Family
from pipelines.models.catalog import MODEL_FAMILIES, model_family
from pipelines.models.runtime import load_bundle
from pipelines.models.tables import answers, example
from pipelines.models.trained_on import shares_market, symbols_of
from pipelines.settings import ROOT, load_params
from pipelines.stage_outputs import fitted_on, read_timings
from pipelines.tracking import DataSet, Version

PREPARE_S = 1800  # features and labels are stopped after this
NO_COLUMNS = "none"  # in a tag: MLflow keeps no empty ones


@task(timeout_seconds=PREPARE_S)
def prepare_rows() -> list[str]:
    """Compute features and labels of the newest snapshot, where they are stale. Return the stages that ran."""
    installation = open_installation()
    with workspace_lease(installation):
        return reproduce(installation, ["features", "labels"], PREPARE_S, lambda _: None)


@task(task_run_name="fit-{family}")
def fit(family: str) -> list[str]:
    """Run the family's stages: walk-forward figures, final fit, export, evaluation. Return those that ran.

    Never retried: a failed fit is news. It runs in processes of its own, so families can run side by side.
    """
    installation = open_installation()
    stages = versioning.stale(installation.workspace, [f"train@{family}", f"evaluate@{family}"])
    timeout_s = 60 * installation.settings.fit_timeout_minutes
    with line_progress(f"train: {family}", part=family) as show_line:
        for stage in stages:
            run_stage(installation, stage, timeout_s, show_line)
    return stages


def restore_fit(installation: Installation, candidate: Version) -> None:
    """Fit a version again in a workspace that has another fit, as a worker's: same data and code give the same bytes.

    Nothing is fitted where the workspace has the version's fit, or the version was judged before.
    Raises  StateError if its data are not the newest, or the bytes differ
    """
    family, remedy = candidate.family, f"`bellwether retrain {candidate.family}` makes a version that can be judged"
    file = installation.workspace / "artifacts" / family / "fit.json"
    if file.is_file() and json.loads(file.read_text())["digest"] == candidate.digest:
        return
    if installation.store.verdict(family, candidate.version, candidate.digest) is not None:
        return
    newest = versioning.data_hash(installation.workspace)
    named = f"{family} version {candidate.version}"
    if newest != candidate.data_hash:
        raise StateError(f"{named} was trained on data {candidate.data_hash}, the newest are {newest}; {remedy}")
    report_progress(f"{named} was fitted elsewhere: fitted here again")
    by_params = by_hand(installation, family)
    left_out = [name for name in columns_of(candidate.tags.get("left_out")) if name not in by_params]
    prepare_rows()
    fit_side_by_side([family], {family: left_out} if left_out else {})
    digest = json.loads(file.read_text())["digest"]
    if digest != candidate.digest:
        raise StateError(
            f"{named} is {candidate.digest[:12]}, fitted here again {digest[:12]}: another release, params.yaml or "
            f"processor made it; {remedy}"
        )


@task
def record(stages: list[str]) -> None:
    """Record in DVC what ran, and save the files of this version."""
    installation = open_installation()
    versioning.record(installation.workspace, stages)
    keep_version(installation)


def fit_side_by_side(families: list[str], left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Fit every family, as many at a time as there are workers. A failed family is named and the others go on.

    left_out  family → columns this fit leaves out
    Return those that did not fail; none where every one has too few rows, so that rules alone decide. Raises
    BellwetherError if none is left and one failed otherwise.
    """
    installation = open_installation()
    with workspace_lease(installation):
        versioning.set_left_out(installation.workspace, left_out)
        running = {family: fit.submit(family) for family in families}
        for future in running.values():
            future.wait()
        failed = {family: future.state for family, future in running.items() if not future.state.is_completed()}
        done = [family for family in families if family not in failed]
        record([stage for family in done for stage in running[family].result()])
    faults = {family: state.result(raise_on_failure=False) for family, state in failed.items()}
    for family, fault in faults.items():
        if isinstance(fault, NotEnoughData):
            report_progress(f"too few events, not trained: {fault}. The others go on")
            continue
        detail = (
            f"{family} was not trained: {failed[family].message}. The others go on; fix the cause and "
            f"`bellwether retrain {family}`"
        )
        installation.store.raise_alarm("training_failed", "high", detail, now())
        report_progress(detail)
    if not done and not all(isinstance(fault, NotEnoughData) for fault in faults.values()):
        raise BellwetherError(f"no family could be trained ({', '.join(failed)}); the reason of each is above")
    return done


@task(retries=2, retry_delay_seconds=[2, 10], task_run_name="log-{family}")
def log(family: str) -> str:
    """Register the candidate and return its version; the same bytes trained on the same data are registered once."""
    installation = open_installation()
    digest = json.loads((installation.workspace / "artifacts" / family / "fit.json").read_text())["digest"]
    data_hash = installation.meta()["data_hash"]
    for known in installation.tracking.versions(family):
        if known.digest == digest and known.data_hash == data_hash:
            return known.version
    version = register(installation, family, digest, data_hash)
    create_link_artifact(
        key=f"candidate-{family}",
        link=installation.tracking.run_link(version.run_id),
        link_text=f"{family} version {version.version} in MLflow",
    )
    return version.version


def register(installation: Installation, family: str, digest: str, data_hash: str) -> Version:
    """Log the family's bundle, figures and provenance as a new version in MLflow, and count its trials."""
    folder = installation.workspace / "artifacts"
    figures = json.loads((folder / "evaluation" / f"{family}.json").read_text())
    git = versioning.git_state(ROOT)
    meta = installation.meta()
    model = load_bundle(folder / family / "bundle", digest)
    asked = example(model)
    older = checked_out(installation.settings)
    proposed = json.loads((folder / family / "importance.json").read_text())["reselection"]["leave_out"]
    version = installation.tracking.log_candidate(
        family,
        folder / family / "bundle",
        params=flat_params(load_params(installation.workspace / "params.yaml").model_dump(mode="json")),
        metrics=flat_metrics(figures | read_timings(folder / family)),
        points=curves(folder / family, family),
        files=[
            *provenance(installation),
            folder / "evaluation" / f"{family}.json",
            folder / family / "importance.json",
        ],
        tags={
            "digest": digest,
            "data_hash": data_hash,
            "git_commit": git.commit,
            "git_dirty": str(git.dirty).lower(),
            "catalogue_hash": meta["catalogue_hash"],
            "symbols": ",".join(symbols_of(model.schema)),
            "decision_timeframe": meta["decision_timeframe"],
            "reselection": figures["reselection"],
            "reselect_without": ",".join(proposed) or NO_COLUMNS,
            "left_out": ",".join(figures["left_out"]) or NO_COLUMNS,
            "left_out_by_hand": ",".join(by_hand(installation, family)) or NO_COLUMNS,
            "half_life_events": f"{figures['decay']['half_life_events']:g}",
            "training_cpu": fitted_on(folder / family),
            "training_device": str(model.schema.get("training_device", "cpu")),
            "flow_run": str(flow_run.id or "none"),
            **({"older_data": older.describe()} if older else {}),
        },
        title=model_family(family).title,
        example=(asked, answers(model, asked)),
        data=data_sets(installation, model, data_hash),
    )
    for configuration in configurations(version.digest, figures["decay"]):
        installation.store.add_trial(family, version.run_id, configuration, now())
    return version


def data_sets(installation: Installation, model: Model, data_hash: str) -> list[DataSet]:
    """Return the markets a model was fitted on, as inputs of its run: where their rows begin and end, and how many."""
    held = installation.data_version().markets
    return [
        DataSet(
            name=symbol,
            digest=data_hash,
            source=installation.versions / data_hash,
            columns=model.columns,
            profile={name: held[symbol][name] for name in ("rows", "first", "last") if name in held[symbol]},
        )
        for symbol in symbols_of(model.schema)
        if symbol in held
    ]


def configurations(digest: str, decay: Mapping[str, Any]) -> Iterator[str]:
    """Yield a name of each configuration that was tried for a candidate: the fit itself, then what it was chosen over.

    decay  of `fit.json`. Every one counts as a trial, at most 64 characters
    """
    yield digest
    for number in range(1, decay["configurations"]):
        yield f"{digest[:40]}-half-life-{number}"


def columns_of(tag: str | None) -> list[str]:
    """Return the columns that a version's tag lists; none of a version from a release without the tag."""
    return [] if tag in (None, NO_COLUMNS) else str(tag).split(",")


def reselected(installation: Installation, family: str) -> list[str]:
    """Return the columns that the next challenger of a family leaves out, by the tags of its newest version.

    Those that a reselection left out of that version, and those it proposes to leave out. None of them after such a
    challenger was refused: then the next one reads every column again. None either if it shares no market with these
    data.
    Columns that a person left out in `params.yaml`, then or now, are none of these: the file alone decides on them.
    """
    newest = next(iter(installation.tracking.versions(family)), None)
    if newest is None or not shares_market(newest.tags, installation.meta()):
        return []
    now_by_hand, then_by_hand = by_hand(installation, family), columns_of(newest.tags.get("left_out_by_hand"))
    before = [
        name for name in columns_of(newest.tags.get("left_out")) if name not in now_by_hand and name not in then_by_hand
    ]
    if before and newest.verdict == "refused":
        return []
    return [*before, *(name for name in columns_of(newest.tags.get("reselect_without")) if name not in now_by_hand)]


def by_hand(installation: Installation, family: str) -> tuple[str, ...]:
    """Return the columns that a person left out of a family, in the `params.yaml` of the installation."""
    return model_family(family).left_out(installation.params)


def provenance(installation: Installation) -> list[Path]:
    """Return the workspace files that trace a version: those of versioning.PROVENANCE that exist."""
    return [
        installation.workspace / name for name in versioning.PROVENANCE if (installation.workspace / name).is_file()
    ]


def flat_params(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested parameters as one level with dotted names."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_params(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def show_versions(installation: Installation, families: Sequence[str], versions: Mapping[str, str]) -> None:
    """Write what came of each family to the flow run's artifacts: its version, and its gain over the first baseline."""
    rows = []
    for family in families:
        if family not in versions:
            rows.append({"family": family, "version": "not trained; the log says why"})
            continue
        evaluation = installation.workspace / "artifacts" / "evaluation" / f"{family}.json"
        figures = figure_rows(json.loads(evaluation.read_text()), None)
        gain = next((row for row in figures if row[0].startswith("gain over ")), figures[0])
        named = dict(zip(("figure", "value", "95 % interval", "n"), gain, strict=True))
        rows.append({"family": family, "version": versions[family], **named})
    create_table_artifact(key="train-versions", table=rows, description="Candidates, before the gate")


@flow(
    name="train",
    flow_run_name=run_name("train {families}"),
    log_prints=True,
    task_runner=ThreadPoolTaskRunner(max_workers=os.cpu_count()),
)
def train(families: list[Family] | None = None, left_out: dict[str, list[str]] | None = None) -> dict[str, str]:
    """Fit and register families side by side. Return family → new version; never promotes.

    Args:
        families: Which to fit; every one if none is given.
        left_out: Columns that the fit of a family leaves out, besides those of params.yaml.
    """
    installation = open_installation()
    bring(installation)
    wanted: list[str] = [*(families or MODEL_FAMILIES)]
    with run_progress("train", ["features and labels", *wanted, *(f"register {family}" for family in wanted)]):
        with step("train: features and labels", part="features and labels"):
            prepare_rows()
        versions: dict[str, str] = {}
        for family in fit_side_by_side(wanted, left_out or {}):
            with step(f"train: log {family} to MLflow", part=f"register {family}"):
                versions[family] = log(family)
            report_progress(f"{family} version {versions[family]} registered")
        show_versions(installation, wanted, versions)
    rename_run(with_versions("train", versions), installation)
    return versions
