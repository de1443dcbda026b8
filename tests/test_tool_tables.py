"""The database of another tool, copied between SQLite and PostgreSQL: every type, and back."""

import warnings
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from pipelines.errors import StateError
from pipelines.store import tool_tables

AT = datetime(2024, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
ONE, TWO = UUID(int=1), UUID(int=2)


def make_tables(url):
    """Make tables as a tool does: one column of each kind, two tables that refer to each other, a computed column."""
    engine = sa.create_engine(url)
    postgres, metadata = engine.dialect.name == "postgresql", sa.MetaData()
    uuid = sa.Uuid() if postgres else sa.CHAR(36)
    parent = sa.Table(
        "parent", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("newest", uuid),
        sa.ForeignKeyConstraint(["newest"], ["child.key"], name="newest_child", use_alter=True),
    )  # fmt: skip
    child = sa.Table(
        "child", metadata, sa.Column("key", uuid, primary_key=True),
        sa.Column("parent_id", sa.Integer, sa.ForeignKey("parent.id") if postgres else None),
        sa.Column("flag", sa.Boolean), sa.Column("data", JSONB() if postgres else sa.JSON),
        sa.Column("at", sa.DateTime(timezone=True)), sa.Column("took", sa.Interval),
        sa.Column("content", sa.LargeBinary), sa.Column("value", sa.Float),
        sa.Column("twice", sa.Integer, sa.Computed("parent_id * 2", persisted=True)),
    ) if postgres else sa.Table(
        "child", metadata, sa.Column("key", uuid, primary_key=True), sa.Column("parent_id", sa.Integer),
        sa.Column("flag", sa.Boolean), sa.Column("data", sa.JSON), sa.Column("at", sa.DateTime),
        sa.Column("took", sa.Interval), sa.Column("content", sa.LargeBinary), sa.Column("value", sa.Float),
        sa.Column("twice", sa.Integer, sa.Computed("parent_id * 2", persisted=True)),
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # SQLite cannot add the constraint of a circle
        metadata.create_all(engine)
    return engine, parent, child


@pytest.fixture
def source(tmp_path):
    """A SQLite database with a row of each oddity, and its URL."""
    url = f"sqlite:///{tmp_path / 'source.db'}"
    engine, parent, child = make_tables(url)
    shared = {"flag": True, "at": AT.replace(tzinfo=None), "took": timedelta(seconds=90, microseconds=5), "value": 0.1}
    with engine.begin() as connection:
        connection.execute(sa.insert(parent), [{"id": 7, "newest": str(TWO)}])
        connection.execute(sa.insert(child), [
            {"key": str(ONE), "parent_id": 7, "data": {"b": 1.0, "a": [None, "é"]}, "content": b"\0\xff", **shared},
            {"key": str(TWO), "parent_id": 7, "data": sa.JSON.NULL, "content": None, **shared},
        ])  # fmt: skip
        text = "INSERT INTO child (key, parent_id, data) VALUES (?, 7, ?)"
        connection.exec_driver_sql(text, (str(UUID(int=3)), "12"))  # SQLite makes a number of it
        connection.exec_driver_sql(text, (str(UUID(int=4)), None))
    engine.dispose()
    return url


def test_rows_of_every_type_come_to_postgresql_and_back(source, postgres_url, tmp_path):
    engine, _, child = make_tables(postgres_url)
    assert tool_tables.copy(source, postgres_url) == {"child": 4, "parent": 1}
    assert tool_tables.differences(source, postgres_url) == []
    with engine.connect() as connection:
        rows = {row.key: row for row in connection.execute(sa.select(child))}
        nulls = connection.exec_driver_sql("SELECT key FROM child WHERE data = 'null'").scalars().all()
    assert (rows[ONE].at, rows[ONE].took, rows[ONE].content) == (AT, timedelta(seconds=90, microseconds=5), b"\0\xff")
    assert rows[ONE].data == {"a": [None, "é"], "b": 1}
    assert (rows[UUID(int=3)].data, rows[ONE].twice, nulls) == (12, 14, [TWO])
    back = f"sqlite:///{tmp_path / 'back.db'}"
    make_tables(back)[0].dispose()
    tool_tables.copy(postgres_url, back)
    assert tool_tables.differences(back, postgres_url) == []
    assert tool_tables.row_counts(back) == tool_tables.row_counts(source)
    with engine.begin() as connection:  # the sequence goes on, the foreign keys are there again
        connection.exec_driver_sql("INSERT INTO parent DEFAULT VALUES")
        assert connection.exec_driver_sql("SELECT max(id) FROM parent").scalar() == 8
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.exec_driver_sql("UPDATE child SET parent_id = 99")
    engine.dispose()


def test_a_row_that_refers_to_none_is_refused_and_nothing_is_copied(source, postgres_url):
    engine, *_ = make_tables(postgres_url)
    at = sa.create_engine(source)
    with at.begin() as connection:
        connection.exec_driver_sql("UPDATE child SET parent_id = 99")
    at.dispose()
    with pytest.raises(StateError, match="not there"):
        tool_tables.copy(source, postgres_url)
    assert tool_tables.row_counts(postgres_url) == {}
    engine.dispose()


def test_a_value_that_differs_names_its_table(source, postgres_url):
    engine, *_ = make_tables(postgres_url)
    tool_tables.copy(source, postgres_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE child SET value = 0.2")
    engine.dispose()
    assert tool_tables.differences(source, postgres_url) == ["child"]


def test_text_that_postgresql_does_not_store_names_its_table_without_the_statement(source, postgres_url):
    engine, *_ = make_tables(postgres_url)
    at = sa.create_engine(source)
    with at.begin() as connection:
        connection.exec_driver_sql("UPDATE child SET data = ? WHERE data IS NULL", ('"nul: \\u0000"',))
    at.dispose()
    with pytest.raises(StateError, match=r"^rows of child do not fit .*Nothing was copied\.$") as caught:
        tool_tables.copy(source, postgres_url)
    assert "INSERT" not in str(caught.value)
    engine.dispose()
