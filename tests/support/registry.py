"""An empty MLflow registry in a file. MLflow takes seconds to make one, so it is made once and copied."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from pipelines.tracking import Tracking


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory) -> Path:
    """Return the SQLite file of an MLflow that holds nothing. The workers of a session share it: copy it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in that of the session
        folder = folder.parent
    made, draft = folder / "empty-mlflow.db", folder / "draft-mlflow.db"
    with (folder / "empty-mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_file():
            Tracking(f"sqlite:///{draft}")
            shutil.copy(draft, made)
    return made


def registry_in(folder: Path, empty: Path) -> Tracking:
    """Return a registry of its own in `folder`, a copy of the empty one."""
    return Tracking(f"sqlite:///{shutil.copy(empty, folder / 'mlflow.db')}")
