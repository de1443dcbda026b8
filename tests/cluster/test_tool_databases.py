"""The evidence part that compares SQLite with PostgreSQL, on very little."""

import pytest

from benchmarks import tool_databases
from benchmarks.postgres import programs


@pytest.mark.stack
@pytest.mark.parametrize("database", tool_databases.PROFILES)
def test_a_map_and_writers_at_once_end_without_a_lock_error(database):
    if programs() is None and database == "PostgreSQL":
        pytest.skip("no PostgreSQL here; apt install postgresql")
    found = tool_databases.run(database, tiny=True)
    assert found["locked"] == found["server_errors"] == 0
    assert len(found["run_s"]) == found["writers"]
    made = tool_databases.figures([found])
    assert all(name.startswith(f"{database}: ") for name in made)
    if database == "PostgreSQL":
        assert found["connections"]["prefect"] > 0
        assert found["map_wal_bytes"] > 0
