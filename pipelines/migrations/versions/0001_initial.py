"""The first schema: bars, decisions, outcomes, promotions, trials, leases, retrain requests, alarms, latches (trips
of circuit breakers)."""

import sqlalchemy as sa
from alembic import op

from pipelines.migrations.tables import UtcTime

revision = "0001"
down_revision = None

APPEND_ONLY = "promotions is append-only: write a new row instead"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "bars",
        sa.Column("symbol", sa.String(64), primary_key=True),
        sa.Column("open_time", sa.Double, primary_key=True),
        sa.Column("open", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("close", sa.Double, nullable=False),
        sa.Column("volume", sa.Double),
        sa.Column("trades", sa.Double),
        sa.Column("taker_buy_volume", sa.Double),
        sa.Column("known_at", sa.Double, nullable=False),
        sa.Column("ingested_at", UtcTime, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("symbol", sa.String(64), nullable=False),
        sa.Column("as_of", UtcTime, nullable=False),
        sa.Column("known_at", UtcTime, nullable=False),
        sa.Column("ingested_at", UtcTime, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("direction", sa.Integer, nullable=False),
        sa.Column("event", sa.String(64)),
        sa.Column("tier", sa.Integer, nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("features", sa.LargeBinary, nullable=False),
        sa.Column("signals", sa.LargeBinary, nullable=False),
    )
    op.create_index("decisions_symbol_as_of", "decisions", ["symbol", "as_of"])
    op.create_index("decisions_as_of", "decisions", ["as_of"])
    op.create_table(
        "outcomes",
        sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), primary_key=True),
        sa.Column("resolved_at", UtcTime, nullable=False),
        sa.Column("label", sa.Integer, nullable=False),
        sa.Column("barrier", sa.String(16), nullable=False),
        sa.Column("gross_bps", sa.Double, nullable=False),
        sa.Column("net_bps", sa.Double, nullable=False),
        sa.Column("cost_bps", sa.Double, nullable=False),
    )
    op.create_index("outcomes_resolved_at", "outcomes", ["resolved_at"])
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("arm", sa.String(16), nullable=False),
        sa.Column("from_version", sa.String(64)),
        sa.Column("to_version", sa.String(64)),
        sa.Column("digest", sa.String(64)),
        sa.Column("run_id", sa.String(64)),
        sa.Column("data_hash", sa.String(64)),
        sa.Column("git_commit", sa.String(64)),
        sa.Column("verdict_passed", sa.Boolean),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_index("promotions_family", "promotions", ["family", "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION promotions_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER promotions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON promotions "
            "FOR EACH STATEMENT EXECUTE FUNCTION promotions_refuse()"
        )
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER promotions_no_{verb.lower()} BEFORE {verb} ON promotions "
                f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
            )
    op.create_table(
        "trials",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("at", UtcTime, nullable=False),
    )
    op.create_index("trials_family", "trials", ["family"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(128), nullable=False),
        sa.Column("acquired_at", UtcTime, nullable=False),
        sa.Column("expires_at", UtcTime, nullable=False),
    )
    op.create_table(
        "retrain_requests",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("family", sa.String(32), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("holder", sa.String(128)),
        sa.Column("lease_until", UtcTime),
        sa.Column("finished_at", UtcTime),
        sa.Column("detail", sa.Text, nullable=False),
    )
    one_open = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "retrain_one_open",
        "retrain_requests",
        ["family"],
        unique=True,
        sqlite_where=one_open,
        postgresql_where=one_open,
    )
    op.create_table(
        "alarms",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("cleared_at", UtcTime),
    )
    op.create_index("alarms_at", "alarms", ["at"])
    op.create_table(
        "latches",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tripped_at", UtcTime, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("reset_at", UtcTime),
        sa.Column("reset_by", sa.String(64)),
        sa.Column("reset_reason", sa.Text),
    )
    one_tripped = sa.text("reset_at IS NULL")
    op.create_index(
        "latches_one_tripped",
        "latches",
        ["name"],
        unique=True,
        sqlite_where=one_tripped,
        postgresql_where=one_tripped,
    )


def downgrade() -> None:
    """Refuse: there is no schema before."""
    raise NotImplementedError("the first schema has nothing before it: restore a backup instead")
