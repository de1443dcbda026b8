"""Run MLflow's server as `mlflow server` does, in one process, behind our guard.

`python -m bellwether.operations.launch.mlflow_app`. MLflow's own command holds a process for the server and another one
next to it, which has imported as much and only waits: 250 MB, and a third of the time of a start. It still serves this
app: `mlflow server --app-name bellwether` finds it by its entry point.
"""

import os
import uuid
from pathlib import Path

import uvicorn
from dotenv import load_dotenv
from starlette.types import ASGIApp

from pipelines.bootstrap import bootstrap
from pipelines.settings import ROOT, Settings, settings
from serving.service.http_guard import Guard

HEALTH = "/health"
ARTIFACTS = "mlflow-artifacts:/"  # the server is the way to the artifacts, for every client


def create_app() -> ASGIApp:
    """Return the guarded app, imported here since it reads the environment that `variables` or `mlflow server` sets."""
    bootstrap()
    from mlflow.server.fastapi_app import app

    return Guard(app, tool="mlflow", probes=dict.fromkeys(("/livez", "/healthz", "/readyz"), HEALTH))


def variables(where: Settings) -> dict[str, str]:
    """Return what `mlflow server` sets for its app; by name, as MLflow reads them once while it is imported."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": where.mlflow_store,
        "_MLFLOW_SERVER_REGISTRY_STORE": where.mlflow_store,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": ARTIFACTS,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": where.mlflow_artifacts,
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_IN_JOB_EXECUTOR": "false",
        "MLFLOW_ENABLE_WORKSPACES": "false",
    }


def main() -> None:
    """Bring the database up to date, then serve API and UI on the host and port of our settings, until SIGTERM."""
    where = settings()
    load_dotenv(ROOT / "mlflow" / "server.env", override=False)
    os.environ.update(variables(where))
    app = create_app()
    from mlflow.server import handlers

    handlers.initialize_backend_stores(where.mlflow_store, where.mlflow_store, ARTIFACTS)
    uvicorn.run(
        app,
        host=where.host,
        port=where.mlflow_port,
        log_config=str(Path(handlers.__file__).with_name("uvicorn_log_config.yaml")),
        access_log=False,  # it would record the tickets of one-time links
    )


if __name__ == "__main__":
    main()
