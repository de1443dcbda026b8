"""Quantity, fee, exit and source of fills: the account that follows from them."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
COLUMNS = ("quantity", "fee_bps", "is_exit", "source")


def upgrade() -> None:
    """Add the columns. Earlier fills are entries that a venue reported, without quantity and fee."""
    op.add_column("fills", sa.Column("quantity", sa.Double))
    op.add_column("fills", sa.Column("fee_bps", sa.Double))
    op.add_column("fills", sa.Column("is_exit", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("fills", sa.Column("source", sa.String(16), nullable=False, server_default="reported"))


def downgrade() -> None:
    """Drop the columns. Refuse where one holds what the release before cannot: it would be lost."""
    fills = sa.table("fills", *(sa.column(name) for name in COLUMNS))
    filled = sa.or_(
        fills.c.quantity.is_not(None), fills.c.fee_bps.is_not(None), fills.c.is_exit.is_(sa.true()),
        fills.c.source != "reported",
    )  # fmt: skip
    if op.get_bind().scalar(sa.select(sa.func.count()).select_from(fills).where(filled)):
        raise NotImplementedError("fills of the account would be lost: restore a backup of the release before instead")
    for name in COLUMNS:
        op.drop_column("fills", name)
