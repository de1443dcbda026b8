"""New stores of the tests, which repeat what migrations sent, are those that the migrations make."""

from contextlib import closing

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable
from support.migrated import repeating

from pipelines.migrations.tables import SCHEMA
from pipelines.store import Store, engine


@pytest.fixture
def other_url(request, url, tmp_path):
    """Return the URL of another empty database of the same kind."""
    if url.startswith("postgresql"):
        return request.getfixturevalue("second_postgres_url")
    return f"sqlite:///{tmp_path / 'other.db'}"


def content(url):
    """Return every table and index as it would be made again, and all rows."""
    store, tables = engine.connect_engine(url, "process"), sa.MetaData()
    try:
        with store.connect() as connection:
            tables.reflect(connection)
            made = {name: str(CreateTable(table).compile(store)) for name, table in tables.tables.items()}
            indexes = {str(CreateIndex(i).compile(store)) for table in tables.tables.values() for i in table.indexes}
            rows = {name: connection.execute(sa.select(table)).all() for name, table in tables.tables.items()}
    finally:
        store.dispose()
    return made, indexes, rows


def test_a_new_store_that_repeats_the_statements_of_the_first_is_the_same(url, other_url, monkeypatch):
    calls, real = [], engine.migrate.__wrapped__

    def migrate(connection, revision):
        calls.append(revision)
        real(connection, revision)

    monkeypatch.setattr(engine, "migrate", repeating(migrate))
    for each in (url, other_url, url):
        with closing(Store.open(each)):
            pass
    assert calls == ["head"]
    assert content(url) == content(other_url)
    made, indexes, rows = content(url)
    assert len(made) > 10
    assert len(indexes) > 10
    assert {name: found for name, found in rows.items() if found} == {"alembic_version": [(SCHEMA,)]}
