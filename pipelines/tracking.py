"""The only doorway to MLflow: runs, registered models, aliases, evidence.

A family is a registered model of the same name. Its version carries, as tags, everything needed to trace it: digest of
the bundle, data hash, git commit, catalogue hash, flow run, trials, gate verdict. MLflow's own clients load and serve a
version by its signature and input example, and find its data as inputs of the run. Aliases are *intent*; the promotion
ledger is fact, and `flows.promote` compares the two.
"""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.contracts import Point
from pipelines.errors import ServiceDown, UnknownName

if TYPE_CHECKING:
    import pandas as pd

EXPERIMENT = "bellwether"
CHAIN_ANCHOR = "bellwether.chain_anchor"  # a tag of the experiment
NEEDED = ("numpy", "onnxruntime", "pandas", "numba", "mlflow")  # to load a version from MLflow
LOGGED_MODEL = "models:/"  # before the id of the logged model that is the source of a version
DIGEST_LETTERS = 36  # of a data set: MLflow takes no more, and our data hashes have as many


@dataclass(frozen=True, slots=True)
class DataSet:
    """Hold the rows of one market in a data version, which MLflow shows as an input of the run.

    digest   hash of the data version
    source   folder of its DVC files
    columns  what the model reads
    profile  facts for people: rows, first, last
    """

    name: str
    digest: str
    source: Path
    columns: tuple[str, ...]
    profile: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Version:
    """Hold one registered version. `verdict`: "passed", "refused" or "pending"; `aliases` are those of this moment."""

    family: str
    version: str
    run_id: str
    digest: str
    data_hash: str
    git_commit: str
    verdict: str
    aliases: tuple[str, ...]
    tags: dict[str, str]


class Tracking:
    """Hold a connection to one MLflow server. Raises ServiceDown, naming the address, if it does not answer."""

    def __init__(self, url: str) -> None:
        """Connect to the server at `url`. MLflow is imported here: it reads its environment once."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")  # 7 s: who watches the registry waits as long
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow
        from mlflow import MlflowClient

        self.url = url
        self._mlflow = mlflow
        mlflow.set_tracking_uri(url)
        self._client = MlflowClient(tracking_uri=url, registry_uri=url)
        try:
            self._client.search_experiments(max_results=1)
        except mlflow.exceptions.MlflowException as error:
            raise ServiceDown(f"MLflow does not answer at {url}: {error}. Start it with `bellwether up`.") from error

    def log_candidate(
        self,
        family: str,
        bundle: Path,
        *,
        params: Mapping[str, object],
        metrics: dict[str, float],
        points: Iterable[Point],
        files: list[Path],
        tags: dict[str, str],
        title: str,
        example: tuple["pd.DataFrame", "pd.DataFrame"],
        data: Sequence[DataSet],
    ) -> Version:
        """Log a run with everything that explains the candidate, register it as a new version of `family`, return that.

        points   of the charts
        tags     must have digest, data_hash, git_commit, git_dirty, catalogue_hash; `flow_run` within a flow
        example  rows to ask the version with, and what it answers: their columns are its signature
        data     what it was trained on
        """
        mlflow = self._mlflow
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_name=f"{family}-{tags['digest'][:8]}", tags=tags) as run:
            mlflow.log_params({name: str(value)[:500] for name, value in params.items()})
            # before the metrics: MLflow would request the history of each metric that the run already has
            with _without_output():
                info = mlflow.pyfunc.log_model(
                    name=family,
                    python_model=str(Path(__file__).parent / "models" / "registered.py"),
                    artifacts={"bundle": str(bundle)},
                    pip_requirements=[f"{name}=={_version_of(name)}" for name in NEEDED],
                    signature=_signature(*example),
                    input_example=example[0],
                )
            mlflow.log_metrics({name: float(value) for name, value in metrics.items()}, model_id=info.model_id)
            self._log_points(run.info.run_id, points)
            self._client.log_inputs(run.info.run_id, [_input(each) for each in data])
            for file in files:
                mlflow.log_artifact(str(file), "evidence")
        # last, and with all its tags: a version that can be found is complete
        with _without_output():
            registered = mlflow.register_model(info.model_uri, family, tags={**tags, "gate_verdict": "pending"})
        if not self._client.get_registered_model(family).description:
            self._client.update_registered_model(family, title)
        self._client.update_model_version(family, registered.version, (bundle / "card.md").read_text())
        return self.version(family, str(registered.version))

    def version(self, family: str, version: str) -> Version:
        """Return one version of a family. Raises UnknownName with the versions that exist."""
        try:
            found = self._client.get_model_version(family, version)
        except self._mlflow.exceptions.MlflowException as error:
            known = ", ".join(v.version for v in self.versions(family)) or "none"
            raise UnknownName(f"{family} has no version {version!r}; known: {known}") from error
        return _read(found, self._aliases(family))

    def versions(self, family: str) -> list[Version]:
        """Return every version of a family, newest first; empty if the family was never trained."""
        found = self._client.search_model_versions(f"name = '{family}'")
        # the search result carries no aliases: they are on the registered model
        aliases = self._aliases(family) if found else {}
        return sorted((_read(v, aliases) for v in found), key=lambda v: -int(v.version))

    def version_by_alias(self, family: str, alias: str) -> Version | None:
        """Return the version an alias points to now, None if it points nowhere."""
        number = self._aliases(family).get(alias)
        return None if number is None else self.version(family, number)

    def aliases(self) -> dict[str, dict[str, str]]:
        """Return family → alias → version, of every registered family; one request."""
        return {
            model.name: {alias: str(version) for alias, version in model.aliases.items()}
            for model in self._client.search_registered_models()
        }

    def set_alias(self, family: str, alias: str, version: str | None) -> None:
        """Point an alias at a version; None removes it."""
        if version is None:
            if alias in self._aliases(family):
                self._client.delete_registered_model_alias(family, alias)
        else:
            self._client.set_registered_model_alias(family, alias, version)

    def tag_version(self, version: Version, tags: Mapping[str, str | None]) -> None:
        """Set tags of a version; None removes one."""
        for name, value in tags.items():
            if value is not None:
                self._client.set_model_version_tag(version.family, version.version, name, value)
            elif name in version.tags:
                self._client.delete_model_version_tag(version.family, version.version, name)

    def record_verdict(
        self,
        family: str,
        version: str,
        passed: bool,
        evidence: Mapping[str, object],
        files: list[Path],
        tags: Mapping[str, str],
    ) -> None:
        """Set the gate's verdict on the version, with these tags, and log its evidence to the run."""
        run_id = self.version(family, version).run_id
        for file in files:
            self._client.log_artifact(run_id, str(file), "gate")
        self._client.log_text(run_id, json.dumps(evidence, indent=1), "gate/verdict.json")
        word = "passed" if passed else "refused"
        self._client.set_tag(run_id, "gate_verdict", word)
        for name, value in {**tags, "gate_verdict": word}.items():
            self._client.set_model_version_tag(family, version, name, value)

    def set_chain_anchor(self, seq: int, mac: str, at: str) -> None:
        """Write down what the ledger's chain ended with at a moment, as a tag of the experiment."""
        self._client.set_experiment_tag(self._experiment(), CHAIN_ANCHOR, f"{seq} {mac} {at}")

    def chain_anchor(self) -> tuple[int, str, str] | None:
        """Return (seq, mac, at) of `set_chain_anchor`; None if there is none, or a person edited it."""
        words = self._client.get_experiment(self._experiment()).tags.get(CHAIN_ANCHOR, "").split()
        return (int(words[0]), words[1], words[2]) if len(words) == 3 and words[0].isdigit() else None

    def _experiment(self) -> str:
        """Return the id of the experiment, made if there is none."""
        return str(self._mlflow.set_experiment(EXPERIMENT).experiment_id)

    def log_study(self, name: str, tags: dict[str, str]) -> str:
        """Start a run for evidence that belongs to no version and return its id; `log_report` fills it."""
        self._mlflow.set_experiment(EXPERIMENT)
        with self._mlflow.start_run(run_name=name, tags=tags) as run:
            return str(run.info.run_id)

    def log_report(
        self, run_id: str, files: list[Path], folder: str, metrics: dict[str, float], at: datetime | None = None
    ) -> None:
        """Add later evidence (a drift report) to the run of its version.

        at  market time of the metrics: their stamp, and their step in seconds since 1970; None = time of day, step 0
        """
        for file in files:
            self._client.log_artifact(run_id, str(file), folder)
        if at is None:
            self._mlflow.log_metrics(metrics, run_id=run_id)
        else:
            at_s = int(at.timestamp())
            self._mlflow.log_metrics(metrics, run_id=run_id, step=at_s, timestamp=1000 * at_s)

    def _log_points(self, run_id: str, points: Iterable[Point]) -> None:
        """Log the points of charts, in one request."""
        from mlflow.entities import Metric

        self._client.log_batch(
            run_id, metrics=[Metric(each.chart, each.value, int(1000 * each.at_s), each.step) for each in points]
        )

    def metrics(self, run_id: str) -> dict[str, float]:
        """Return every metric of a run, by name."""
        return {name: float(value) for name, value in self._client.get_run(run_id).data.metrics.items()}

    def download_bundle(self, version: Version, into: Path) -> Path:
        """Download the bundle of a version into the folder `into` (created if absent); return its path, unverified."""
        into.mkdir(parents=True, exist_ok=True)
        source = self._client.get_model_version(version.family, version.version).source
        model = self._client.get_logged_model(str(source).removeprefix(LOGGED_MODEL))
        path = self._mlflow.artifacts.download_artifacts(
            artifact_uri=f"{model.artifact_location}/artifacts", dst_path=str(into), tracking_uri=self.url
        )
        (bundle,) = Path(path).iterdir()
        return bundle

    def run_link(self, run_id: str) -> str:
        """Return the address of a run in MLflow's UI."""
        run = self._client.get_run(run_id)
        return f"{self.url}/#/experiments/{run.info.experiment_id}/runs/{run_id}"

    def _aliases(self, family: str) -> dict[str, str]:
        """Return alias → version of a family; empty for one that is not registered."""
        try:
            return {a: str(v) for a, v in self._client.get_registered_model(family).aliases.items()}
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise


def _read(found: Any, aliases: Mapping[str, str]) -> Version:
    """Return MLflow's ModelVersion as a Version; `aliases` are those of its family."""
    tags = {k: str(v) for k, v in found.tags.items()}
    return Version(
        family=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        digest=tags.get("digest", ""),
        data_hash=tags.get("data_hash", ""),
        git_commit=tags.get("git_commit", ""),
        verdict=tags.get("gate_verdict", "pending"),
        aliases=tuple(sorted(a for a, v in aliases.items() if v == str(found.version))),
        tags=tags,
    )


def _signature(rows: "pd.DataFrame", answers: "pd.DataFrame") -> Any:
    """Return the signature of a version, of example rows and what it answers.

    Stated, not inferred: in an example without an abstention every reason is absent, and MLflow could not say of what
    type it is. A column of the input must be there, its values may be missing.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    words = dict.fromkeys(answers.select_dtypes("object").columns, "string")
    return ModelSignature(
        Schema([ColSpec("double", name) for name in rows.columns]),
        Schema([ColSpec(words.get(name, "double"), name, required=False) for name in answers.columns]),
    )


def _input(data: DataSet) -> Any:
    """Return a data set as MLflow's input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    columns = [{"name": name, "type": "double"} for name in data.columns]
    return DatasetInput(
        Dataset(
            name=data.name,
            digest=data.digest[:DIGEST_LETTERS],
            source_type="local",
            source=json.dumps({"uri": str(data.source)}),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps(data.profile),
        ),
        [InputTag("mlflow.data.context", "training")],
    )


def _without_output() -> contextlib.redirect_stderr[io.StringIO]:
    """Discard what MLflow prints to standard error; errors are raised anyway."""
    return contextlib.redirect_stderr(io.StringIO())


def _version_of(package: str) -> str:
    """Return the installed version of a package."""
    from importlib.metadata import version

    return version(package)
