"""MLflow's server behind our guard: an entry point (pyproject.toml) by which `mlflow server --app-name bellwether` finds
it."""

from starlette.types import ASGIApp

from serving.guard import Guard

HEALTH = "/health"


def create_app() -> ASGIApp:
    """The app of the tracking server, in the process that `mlflow server` starts. It tells it all by its environment,
    read when the app is imported; so it is imported here."""
    from mlflow.server.fastapi_app import app

    return Guard(app, tool="mlflow", probes=dict.fromkeys(("/livez", "/healthz", "/readyz"), HEALTH))
