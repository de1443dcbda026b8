"""Decisions as records of version 2, and the parts they share. Rows from before keep their JSON and are read for ever.

A new row has an empty `payload`, `features` and `signals`: a column that may be NULL would have to be written again for
every row of the table on SQLite.
"""

import sqlalchemy as sa
from alembic import op

from pipelines.record_codec import part_digest, part_of, read_record

revision = "0008"
down_revision = "0007"
APPEND_ONLY = "record_parts is append-only: decisions rest on every row"
ROWS_AT_ONCE = 500


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("decisions", sa.Column("record", sa.LargeBinary))
    op.create_table(
        "record_parts",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION record_parts_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER record_parts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON record_parts "
            "FOR EACH STATEMENT EXECUTE FUNCTION record_parts_refuse()"
        )
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER record_parts_no_{verb.lower()} BEFORE {verb} ON record_parts "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )


def downgrade() -> None:
    """Write every record as the columns before had it, then drop column and table."""
    decisions = sa.table(
        "decisions", sa.column("id"), sa.column("payload", sa.JSON), sa.column("features", sa.LargeBinary),
        sa.column("signals", sa.LargeBinary), sa.column("record", sa.LargeBinary),
    )  # fmt: skip
    stored_parts = sa.table("record_parts", sa.column("digest", sa.LargeBinary), sa.column("content", sa.LargeBinary))
    connection, last = op.get_bind(), ""
    parts = {
        bytes(digest): part_of(bytes(digest), bytes(content))
        for digest, content in connection.execute(sa.select(stored_parts))
    }
    id, record = decisions.c.id, decisions.c.record
    some = sa.select(id, record).where(record.is_not(None)).order_by(id).limit(ROWS_AT_ONCE)
    rewrite = sa.update(decisions).where(id == sa.bindparam("row"))
    while rows := connection.execute(some.where(id > last)).all():
        read = [(name, read_record(bytes(content), parts[part_digest(bytes(content))])) for name, content in rows]
        written = [
            {"row": name, "payload": r.decision.to_dict(), "features": r.features, "signals": r.signals}
            for name, r in read
        ]
        connection.execute(rewrite, written)
        last = rows[-1][0]
    op.drop_column("decisions", "record")
    op.drop_table("record_parts")
    if connection.dialect.name == "postgresql":
        op.execute("DROP FUNCTION record_parts_refuse()")
