"""Distribution of the suite over workers (the real servers' tests to one worker, other long files next, the rest by
file), and the two databases the store runs on."""

import gc
import os
import ssl
from functools import cache

from pipelines.bootstrap import bootstrap

bootstrap()  # before numpy is imported
# each call of httpx and each client of Prefect would read 140 certificates, 50 ms; all our servers speak plain HTTP
ssl.create_default_context = cache(ssl.create_default_context)

# isort: split
import pytest  # noqa: E402

pytest.register_assert_rewrite("support")

# isort: split
from support.migrated import repeating  # noqa: E402
from support.postgres import postgres_server, postgres_url, second_postgres_url  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from pipelines.store import engine  # noqa: E402

__all__ = ["postgres_server", "postgres_url", "second_postgres_url", "url"]
SERVERS = "tests/integration/"  # one stack, started once
# long ones early, so that none of them is last; hardship's services when the turn no longer takes both cores
LONG = (
    "tests/test_tutorials.py", "tests/training/test_controls.py",
    "tests/serving/test_replay.py", "tests/test_hardship.py", "tests/test_faults.py",
)  # fmt: skip
ONE_FIXTURE = {"tests/test_faults.py": "tests/test_hardship.py"}  # in one process: they share a trained fixture


def pytest_runtest_setup(item):
    """Lower the priority of every worker but the one with the servers: its tests take longest."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    if shared and not item.nodeid.startswith(SERVERS) and os.nice(0) == 0:
        os.nice(10)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect without searching for reference cycles: half a million imported and collected objects stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    items.sort(key=_rank)


def _rank(item):
    """Return the rank of a test: servers first, then long files in order, then the rest."""
    if item.get_closest_marker("stack"):
        return 0
    return next((at for at, name in enumerate(LONG, 1) if item.nodeid.startswith(name)), len(LONG) + 1)


class ByFile(LoadScopeScheduling):
    """Gives each file to one worker, and all tests of the servers to one."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        return SERVERS if nodeid.startswith(SERVERS) else ONE_FIXTURE.get(file, file)


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Return the URL of an empty database, once of either kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'new' / 'store.db'}"


@pytest.fixture(scope="session", autouse=True)
def _repeated_migrations():
    """Run the migrations of an empty database once a process; a database that holds something is always migrated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "migrate", repeating(engine.migrate))
        yield
