"""Half the spread at a bar's close, in quote currency; NULL where it was not recorded, so in every bar before."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("bars", sa.Column("half_spread", sa.Double))


def downgrade() -> None:
    """Drop the column. Refuse where it holds a value: observed data would be lost."""
    held = sa.table("bars", sa.column("half_spread")).c.half_spread
    if op.get_bind().scalar(sa.select(sa.func.count(held))):
        raise NotImplementedError("observed data would be lost: restore a backup of the release before instead")
    op.drop_column("bars", "half_spread")
