"""How often work on a retrain request was begun: a worker that dies is followed once."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("retrain_requests", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("a request could be begun for ever: restore a backup of the release before instead")
