"""Small files that flows rest on, for workers that do not share the disk of the home."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "home_files",
        sa.Column("path", sa.String(255), primary_key=True),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Drop the table: each home has its files."""
    op.drop_table("home_files")
