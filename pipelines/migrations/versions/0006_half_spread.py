"""Half the spread at a bar's close, in quote currency; NULL where it was not recorded, so in every bar before."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("bars", sa.Column("half_spread", sa.Double))


def downgrade() -> None:
    """Refuse: it would lose observed data."""
    raise NotImplementedError("observed data would be lost: restore a backup of the release before instead")
