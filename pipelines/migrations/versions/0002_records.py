"""Books and context as they were observed, next to the bars."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of records."""
    op.create_table(
        "records",
        sa.Column("symbol", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("known_at", sa.Double, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("ingested_at", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Refuse: it would lose observed data."""
    raise NotImplementedError("observed data would be lost: restore a backup of the release before instead")
