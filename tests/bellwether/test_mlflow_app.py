"""MLflow's server is started with names that are MLflow's own; tests/integration holds what it answers, and to whom."""

from importlib.util import find_spec
from pathlib import Path

from bellwether.operations.launch import mlflow_app
from pipelines.settings import Settings


def test_every_variable_that_is_set_for_the_server_is_one_that_mlflow_reads(tmp_path):
    found = find_spec("mlflow")  # read, not imported: that takes seconds
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    sources = [(folder / name).read_text() for name in ("server/constants.py", "environment_variables.py")]
    set_for_it = mlflow_app.variables(Settings(_env_file=None, home=tmp_path))
    assert [name for name in set_for_it if not any(f'"{name}"' in source for source in sources)] == []


def test_runs_and_artifacts_of_the_server_are_those_of_the_settings(tmp_path):
    home = Settings(_env_file=None, home=tmp_path)
    set_for_it = mlflow_app.variables(home)
    assert set_for_it["_MLFLOW_SERVER_FILE_STORE"] == set_for_it["_MLFLOW_SERVER_REGISTRY_STORE"] == home.mlflow_store
    assert set_for_it["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] == home.mlflow_artifacts
