"""An index of the decisions that opened something, which are few: the status line counts them each second, and the
account reads them when a service starts. Without it either read the whole ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

_EMITTED = sa.text("action <> 'NO_TRADE'")


def upgrade() -> None:
    """Build the index; no row is written again."""
    op.create_index("decisions_emitted", "decisions", ["as_of"], sqlite_where=_EMITTED, postgresql_where=_EMITTED)


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("decisions_emitted", "decisions")
