"""Indexes for what a large ledger is read by: emitted decisions, and what was known at a moment.

Decisions that opened something are few: the status line counts them each second, and the account reads them when a
service starts. A listing as known at a moment takes the newest closes that were stored by then: without the time of
storing in the index it reads every decision that came later. No row is written again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_EMITTED = sa.text("action <> 'NO_TRADE'")


def upgrade() -> None:
    """Build both; the second replaces the index by close alone."""
    op.create_index("decisions_emitted", "decisions", ["as_of"], sqlite_where=_EMITTED, postgresql_where=_EMITTED)
    op.drop_index("decisions_as_of", "decisions")
    op.create_index("decisions_as_of", "decisions", ["as_of", "ingested_at"])


def downgrade() -> None:
    """Go back to the index by close alone."""
    op.drop_index("decisions_as_of", "decisions")
    op.create_index("decisions_as_of", "decisions", ["as_of"])
    op.drop_index("decisions_emitted", "decisions")
