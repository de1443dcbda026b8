"""The way from a command to the services of its home."""

import logging
import os

from flows.support import processes
from pipelines.errors import ServiceDown
from pipelines.settings import settings


def connect() -> None:
    """Point this process at our own servers before it imports their libraries; flow logs go to the UI, not here."""
    os.environ.update(processes.environment(settings()))
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    for noisy in ("mlflow", "dvc", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def require_services(*names: str, ready: bool = True) -> None:
    """Check that each of these services is up.

    ready   False accepts a service that answers and is not ready
    Raises  ServiceDown, with the command that starts it
    """
    found = processes.services(settings())
    for name in names:
        if found[name]["state"] == "key refused":
            raise ServiceDown(f"{name} at {found[name]['url']}: {found[name]['detail']}.")
        if found[name]["state"] != "up" and (ready or found[name]["state"] != "not ready"):
            why = found[name]["detail"] or f"does not answer at {found[name]['url']}"
            raise ServiceDown(f"{name} is {found[name]['state']}: {why}. Start it with `bellwether up`.")
