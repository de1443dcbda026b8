"""How the suite is shared out to two workers: the real servers' tests first and to one of them, others by file."""

import uuid

import pytest
import sqlalchemy as sa
from xdist.scheduler import LoadScopeScheduling

from benchmarks.postgres import postgresql, programs

SERVERS = "tests/integration/"  # one stack, started once


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("stack") is None)


class ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid):
        return SERVERS if nodeid.startswith(SERVERS) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def postgres_server():
    """URL of a real PostgreSQL of this run."""
    if programs() is None:
        pytest.skip("no PostgreSQL here: no initdb on PATH or under /usr/lib/postgresql")
    with postgresql() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server):
    """URL of an empty database of this test."""
    name, admin = f"test_{uuid.uuid4().hex[:12]}", sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield postgres_server.rpartition("/")[0] + f"/{name}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
