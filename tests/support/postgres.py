"""PostgreSQL for the tests: started once, one schema a test."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from benchmarks.postgres import postgresql, programs


@contextmanager
def database(server: str) -> Iterator[str]:
    """Yield the URL of a new, empty schema, the only one its connections see: far faster than a database."""
    name, at = f"t{uuid.uuid4().hex}", make_url(server)
    connection = psycopg2.connect(host=at.host, port=at.port, user=at.username, dbname=at.database)
    connection.autocommit = True
    try:
        connection.cursor().execute(f"CREATE SCHEMA {name}")
        yield f"{server}?options=-csearch_path%3D{name}"
        connection.cursor().execute("SET lock_timeout = '10s'")  # a transaction left open is a failure, not a wait
        connection.cursor().execute(f"DROP SCHEMA {name} CASCADE")
    finally:
        connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Yield the URL of a server that runs for the session."""
    if programs() is None:
        pytest.skip("no PostgreSQL here: neither initdb on the PATH nor /usr/lib/postgresql; apt install postgresql")
    with postgresql() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Yield the URL of an empty schema."""
    with database(postgres_server) as url:
        yield url


@pytest.fixture
def second_postgres_url(postgres_server: str) -> Iterator[str]:
    """Yield the URL of another empty schema."""
    with database(postgres_server) as url:
        yield url
