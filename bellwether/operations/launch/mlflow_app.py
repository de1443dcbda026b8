"""MLflow's server behind our guard: `mlflow server --app-name bellwether` finds it by its entry point."""

from starlette.types import ASGIApp

from pipelines.bootstrap import bootstrap
from serving.service.http_guard import Guard

HEALTH = "/health"


def create_app() -> ASGIApp:
    """Return the guarded app, imported here since it reads the environment that `mlflow server` sets for it."""
    bootstrap()
    from mlflow.server.fastapi_app import app

    return Guard(app, tool="mlflow", probes=dict.fromkeys(("/livez", "/healthz", "/readyz"), HEALTH))
