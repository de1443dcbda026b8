"""Alarms of the kind `look_fault` become `poll_failed`, so that one stored before is found and cleared."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Rename the kind in open and cleared alarms."""
    op.execute("UPDATE alarms SET kind = 'poll_failed' WHERE kind = 'look_fault'")


def downgrade() -> None:
    """Give the kind its earlier name back; release 0.5.0 then finds its open alarm."""
    op.execute("UPDATE alarms SET kind = 'look_fault' WHERE kind = 'poll_failed'")
