"""Quarantined bars, and corrections of observed ones."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0007"
down_revision = "0006"
TABLES = ("quarantine", "corrections")
APPEND_ONLY = "corrections is append-only: write a new row instead"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "quarantine",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("symbol", sa.String(64), nullable=False),
        sa.Column("open_time", sa.Double, nullable=False),
        sa.Column("bar", sa.LargeBinary, nullable=False),
        sa.Column("known_at", sa.Double, nullable=False),
        sa.Column("code", sa.String(32), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("closed_at", UtcTime),
        sa.Column("closed_by", sa.String(64)),
        sa.Column("closed_reason", sa.Text),
    )
    held = sa.text("state = 'held'")
    op.create_index("quarantine_symbol", "quarantine", ["symbol", "open_time"])
    op.create_index(
        "quarantine_one_held", "quarantine", ["symbol", "open_time"], unique=True, sqlite_where=held,
        postgresql_where=held,
    )  # fmt: skip
    op.create_table(
        "corrections",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("symbol", sa.String(64), nullable=False),
        sa.Column("open_time", sa.Double, nullable=False),
        sa.Column("before", sa.LargeBinary),
        sa.Column("after", sa.LargeBinary),
        sa.Column("known_at", sa.Double, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )
    op.create_index("corrections_symbol", "corrections", ["symbol", "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION corrections_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER corrections_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON corrections "
            "FOR EACH STATEMENT EXECUTE FUNCTION corrections_refuse()"
        )
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER corrections_no_{verb.lower()} BEFORE {verb} ON corrections "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )


def downgrade() -> None:
    """Drop the tables. Refuse where one holds a row: what a person decided would be lost."""
    for name in TABLES:
        if op.get_bind().scalar(sa.select(sa.func.count()).select_from(sa.table(name))):
            raise NotImplementedError(f"{name} would be lost: restore a backup of the release before instead")
    for name in TABLES:
        op.drop_table(name)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION corrections_refuse()")
