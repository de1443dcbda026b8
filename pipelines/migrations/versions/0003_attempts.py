"""How often a worker started a retrain request: after a worker died it is started once more."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the count of attempts."""
    op.add_column("retrain_requests", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    """Refuse: without the count a request could be started for ever."""
    raise NotImplementedError("a request could be started for ever: restore a backup of the release before instead")
