"""The place of each decision in the ledger, which a reader of the stream resumes from; NULL in rows before.

Rows from before are not numbered: that would write every one of them again. A stream begins behind them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Add the column."""
    op.add_column("decisions", sa.Column("seq", sa.BigInteger))
    op.create_index("decisions_seq", "decisions", ["seq"], unique=True)


def downgrade() -> None:
    """Drop the column. Refuse where the chain may cover a number: it has a root, and there is a number."""
    kind, seq = sa.table("chain", sa.column("kind")).c.kind, sa.table("decisions", sa.column("seq")).c.seq
    roots = sa.select(sa.func.count(kind)).where(kind.in_(("decisions", "pruned")))
    if op.get_bind().scalar(roots) and op.get_bind().scalar(sa.select(sa.func.count(seq))):
        raise NotImplementedError("the chain covers the order of decisions: restore a backup of the release before")
    op.drop_index("decisions_seq", "decisions")
    op.drop_column("decisions", "seq")
