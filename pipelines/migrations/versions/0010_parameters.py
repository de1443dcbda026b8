"""Parameters that decisions were made by."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0010"
down_revision = "0009"
APPEND_ONLY = "parameters is append-only: write a new row instead"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "parameters",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION parameters_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER parameters_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON parameters "
            "FOR EACH STATEMENT EXECUTE FUNCTION parameters_refuse()"
        )
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER parameters_no_{verb.lower()} BEFORE {verb} ON parameters "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )


def downgrade() -> None:
    """Drop the table: the release before replays only by the present params.yaml."""
    op.drop_table("parameters")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION parameters_refuse()")
