"""Outcomes of each family's own label, with the losses of the models that predicted them."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "family_outcomes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), nullable=False),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("symbol", sa.String(64), nullable=False),
        sa.Column("as_of", UtcTime, nullable=False),
        sa.Column("resolved_at", UtcTime, nullable=False),
        sa.Column("ingested_at", UtcTime, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("losses", sa.Text, nullable=False),
    )
    op.create_index("family_outcomes_decision", "family_outcomes", ["decision_id", "family"], unique=True)
    op.create_index("family_outcomes_as_of", "family_outcomes", ["family", "as_of"])
    op.create_table(
        "family_outcomes_through",
        sa.Column("symbol", sa.String(64), primary_key=True),
        sa.Column("through", UtcTime, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables: everything in them can be computed again from the decisions and the bars."""
    op.drop_table("family_outcomes_through")
    op.drop_table("family_outcomes")
