"""The index of a symbol's decisions has the time of storing, as that of all decisions has since 0015.

A listing of one symbol as known at a moment read every decision of it that came later. No row is written again.
"""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Replace the index by symbol and close."""
    op.drop_index("decisions_symbol_as_of", "decisions")
    op.create_index("decisions_symbol_as_of", "decisions", ["symbol", "as_of", "ingested_at"])


def downgrade() -> None:
    """Go back to the index by symbol and close alone."""
    op.drop_index("decisions_symbol_as_of", "decisions")
    op.create_index("decisions_symbol_as_of", "decisions", ["symbol", "as_of"])
