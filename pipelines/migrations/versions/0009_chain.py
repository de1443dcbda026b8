"""The chain: a keyed line for each row that must not change. Also when each outcome was stored; NULL in rows before."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0009"
down_revision = "0008"
APPEND_ONLY = "chain is append-only: write a new row instead"


def upgrade() -> None:
    """Create the table, add the column."""
    op.add_column("outcomes", sa.Column("ingested_at", UtcTime))
    op.create_table(
        "chain",
        sa.Column("chain_id", sa.String(64), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("ref", sa.String(96), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
    )
    op.create_index("decisions_ingested_at", "decisions", ["ingested_at"])
    op.create_index("chain_kind", "chain", ["chain_id", "kind", "seq"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION chain_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER chain_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON chain "
            "FOR EACH STATEMENT EXECUTE FUNCTION chain_refuse()"
        )
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER chain_no_{verb.lower()} BEFORE {verb} ON chain "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )


def downgrade() -> None:
    """Drop table and column. Refuse where one holds something: what proves the rows, when outcomes came, is lost."""
    if op.get_bind().scalar(sa.select(sa.func.count()).select_from(sa.table("chain"))):
        raise NotImplementedError("the chain would be lost: restore a backup of the release before instead")
    received = sa.table("outcomes", sa.column("ingested_at")).c.ingested_at
    if op.get_bind().scalar(sa.select(sa.func.count(received))):
        raise NotImplementedError("when outcomes came would be lost: restore a backup of the release before instead")
    op.drop_column("outcomes", "ingested_at")
    op.drop_index("decisions_ingested_at", "decisions")
    op.drop_table("chain")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION chain_refuse()")
