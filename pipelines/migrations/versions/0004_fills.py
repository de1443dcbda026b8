"""Fills that a venue reported, and the event time up to which a reset of a breaker accepted the account's history."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("latches", sa.Column("reset_as_of", UtcTime))
    op.create_table(
        "fills",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("ingested_at", UtcTime, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("price", sa.Double),
        sa.Column("slippage_bps", sa.Double),
        sa.Column("reason", sa.Text, nullable=False),
    )
    op.create_index("fills_ingested_at", "fills", ["ingested_at"])
    op.create_index("fills_decision_id", "fills", ["decision_id"])


def downgrade() -> None:
    """Refuse: it would lose fills."""
    raise NotImplementedError("fills would be lost: restore a backup of the release before instead")
