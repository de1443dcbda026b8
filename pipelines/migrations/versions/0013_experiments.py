"""Experiments of a challenger against its champion: rules fixed at the start, transitions, scores of each block."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("champion", sa.String(64), nullable=False),
        sa.Column("champion_digest", sa.String(64), nullable=False),
        sa.Column("challenger", sa.String(64), nullable=False),
        sa.Column("challenger_digest", sa.String(64), nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("origin_s", sa.Double, nullable=False),
        sa.Column("horizon_s", sa.Double, nullable=False),
        sa.Column("horizons", sa.Integer, nullable=False),
        sa.Column("alpha", sa.Double, nullable=False),
        sa.Column("bound", sa.Double, nullable=False),
        sa.Column("least_gain", sa.Double, nullable=False),
        sa.Column("futility_alpha", sa.Double, nullable=False),
        sa.Column("max_blocks", sa.Integer, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_index("experiments_family", "experiments", ["family", "id"])
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("as_of_s", sa.Double, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_index("transitions_experiment", "transitions", ["experiment", "id"])
    op.create_table(
        "block_scores",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("mean", sa.Double),
        sa.Column("void", sa.Text, nullable=False),
        sa.Column("harm", sa.JSON, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )
    op.create_index("block_scores_number", "block_scores", ["experiment", "number"], unique=True)


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("block_scores")
    op.drop_table("transitions")
    op.drop_table("experiments")
