"""The tables as this release reads them; `versions/` holds the steps that lead here (a test compares the two).

Bars keep epoch seconds in float64 like every compiled matrix; every other stamp is an aware UTC datetime.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.types import TypeDecorator

from pipelines.errors import BadTimes

SCHEMA = "0017"  # the revision these tables belong to


class NaiveTime(BadTimes, DontWrapMixin):
    """Signal that a datetime without a zone reached the store (law L8)."""


class UtcTime(TypeDecorator[datetime]):
    """Store aware datetimes and return aware UTC datetimes, also on SQLite, which has no time zones."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> datetime | None:
        """Return the time in UTC for the driver. Raises NaiveTime without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise NaiveTime(f"{value.isoformat()} has no time zone. Pass an aware datetime, such as datetime.now(UTC).")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        """Return a stored time as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = sa.MetaData()

records = sa.Table(
    "records",  # books and context values as they were observed
    METADATA,
    sa.Column("symbol", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),  # "book", or a name of CONTEXT_FIELDS
    sa.Column("known_at", sa.Double, primary_key=True),  # epoch seconds
    sa.Column("payload", sa.LargeBinary, nullable=False),  # little-endian float64: a book's levels and flows, a value
    sa.Column("ingested_at", UtcTime, nullable=False),
)

bars = sa.Table(
    "bars",
    METADATA,
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
    sa.Column("half_spread", sa.Double),
)

# As text: SQLite uses an index of some rows only where the query states the same words, not a bound value.
EMITTED = sa.text("action <> 'NO_TRADE'")
decisions = sa.Table(
    "decisions",
    METADATA,
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
    # What follows is empty where `record` holds it: in every row since revision 0008.
    sa.Column("payload", sa.JSON, nullable=False),  # the whole Decision
    sa.Column("features", sa.LargeBinary, nullable=False),  # float64 row the models read, catalogue order
    sa.Column("signals", sa.LargeBinary, nullable=False),
    sa.Column("record", sa.LargeBinary),  # all three, as `pipelines.record_codec` writes them
    sa.Column("seq", sa.BigInteger),  # 1, 2, 3 … in the order in which they became durable; NULL before revision 0014
    # with the time of storing, a listing as known at a moment reads what it shows alone
    sa.Index("decisions_symbol_as_of", "symbol", "as_of", "ingested_at"),
    sa.Index("decisions_as_of", "as_of", "ingested_at"),
    sa.Index("decisions_ingested_at", "ingested_at"),  # a root of the chain is over those that came in a span
    sa.Index("decisions_seq", "seq", unique=True),
    sa.Index("decisions_emitted", "as_of", sqlite_where=EMITTED, postgresql_where=EMITTED),
)

record_parts = sa.Table(
    "record_parts",  # append-only: what the records of many decisions share
    METADATA,
    sa.Column("digest", sa.LargeBinary, primary_key=True),  # of the content
    sa.Column("content", sa.LargeBinary, nullable=False),
)

outcomes = sa.Table(
    "outcomes",
    METADATA,
    sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), primary_key=True),
    sa.Column("resolved_at", UtcTime, nullable=False),
    sa.Column("label", sa.Integer, nullable=False),
    sa.Column("barrier", sa.String(16), nullable=False),
    sa.Column("gross_bps", sa.Double, nullable=False),
    sa.Column("net_bps", sa.Double, nullable=False),
    sa.Column("cost_bps", sa.Double, nullable=False),
    sa.Column("ingested_at", UtcTime),  # NULL before revision 0009: `resolved_at` counts as the moment it was known
    sa.Index("outcomes_resolved_at", "resolved_at"),
)

promotions = sa.Table(
    "promotions",
    METADATA,
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
    sa.Index("promotions_family", "family", "id"),
)

trials = sa.Table(
    "trials",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("family", sa.String(32), nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("spec_hash", sa.String(64), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Index("trials_family", "family"),
)

leases = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(128), nullable=False),
    sa.Column("acquired_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime, nullable=False),
)

home_files = sa.Table(
    "home_files",
    METADATA,
    sa.Column("path", sa.String(255), primary_key=True),  # below the home, with slashes
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
)

_ONE_OPEN = sa.text("state IN ('queued', 'running')")
retrain_requests = sa.Table(
    "retrain_requests",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("family", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # queued | running | done | failed
    sa.Column("holder", sa.String(128)),
    sa.Column("lease_until", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Index("retrain_one_open", "family", unique=True, sqlite_where=_ONE_OPEN, postgresql_where=_ONE_OPEN),
)

alarms = sa.Table(
    "alarms",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("cleared_at", UtcTime),
    sa.Index("alarms_at", "at"),
)

# Trips of circuit breakers. The table keeps its earlier name: backups and ad-hoc SQL of every release refer to it, and
# no code outside of the store reads it.
_ONE_TRIPPED = sa.text("reset_at IS NULL")
latches = sa.Table(
    "latches",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("tripped_at", UtcTime, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("reset_at", UtcTime),
    sa.Column("reset_by", sa.String(64)),
    sa.Column("reset_reason", sa.Text),
    sa.Column("reset_as_of", UtcTime),  # newest event time in the store at the reset: accepted up to there
    sa.Index("latches_one_tripped", "name", unique=True, sqlite_where=_ONE_TRIPPED, postgresql_where=_ONE_TRIPPED),
)

fills = sa.Table(
    "fills",  # of the orders of decisions: what a venue reported, and what the ledger counts without one
    METADATA,
    sa.Column(
        "id", sa.String(64), primary_key=True
    ),  # the venue's own, or the ledger's: a report sent twice changes nothing
    sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), nullable=False),
    sa.Column("at", UtcTime, nullable=False),  # the venue's clock, or the market's
    sa.Column("ingested_at", UtcTime, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),  # filled | rejected
    sa.Column("price", sa.Double),
    sa.Column("slippage_bps", sa.Double),  # of the decision's entry; positive = worse than decided
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("quantity", sa.Double),  # fraction of equity; NULL where it was not reported
    sa.Column("fee_bps", sa.Double),  # of this side; NULL where it was not reported
    sa.Column("is_exit", sa.Boolean, nullable=False, server_default=sa.false()),  # it closed a position
    sa.Column("source", sa.String(16), nullable=False, server_default="reported"),  # reported | ledger
    sa.Index("fills_ingested_at", "ingested_at"),
    sa.Index("fills_decision_id", "decision_id"),
)

_ONE_HELD = sa.text("state = 'held'")
quarantine = sa.Table(
    "quarantine",  # bars that are not folded until a person acts
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("symbol", sa.String(64), nullable=False),
    sa.Column("open_time", sa.Double, nullable=False),  # epoch seconds
    sa.Column("bar", sa.LargeBinary, nullable=False),  # little-endian float64, BAR_FIELDS order, NaN = not recorded
    sa.Column("known_at", sa.Double, nullable=False),  # epoch seconds: its close
    sa.Column("code", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # held | released | dropped | withdrawn
    sa.Column("closed_at", UtcTime),
    sa.Column("closed_by", sa.String(64)),
    sa.Column("closed_reason", sa.Text),
    sa.Index("quarantine_symbol", "symbol", "open_time"),
    sa.Index(
        "quarantine_one_held", "symbol", "open_time", unique=True, sqlite_where=_ONE_HELD, postgresql_where=_ONE_HELD
    ),
)

corrections = sa.Table(
    "corrections",  # append-only: what an observed bar is read as from a moment on
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("symbol", sa.String(64), nullable=False),
    sa.Column("open_time", sa.Double, nullable=False),
    sa.Column("before", sa.LargeBinary),  # the bar as it was read until then; NULL = there was none
    sa.Column("after", sa.LargeBinary),  # the bar as it is read from here on; NULL = there is none
    sa.Column("known_at", sa.Double, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Index("corrections_symbol", "symbol", "id"),
)

chain = sa.Table(
    "chain",  # append-only: a keyed line for each row that must not change, see pipelines.store.chain
    METADATA,
    sa.Column("chain_id", sa.String(64), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("ref", sa.String(96), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("mac", sa.String(64), nullable=False),
    sa.Index("chain_kind", "chain_id", "kind", "seq"),
)

parameters = sa.Table(
    "parameters",  # append-only: what decisions were made by, each set once
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),  # sha256 of the content
    sa.Column("content", sa.Text, nullable=False),  # params.yaml as it was read, JSON
    sa.Column("at", UtcTime, nullable=False),  # first used
)

family_outcomes = sa.Table(
    "family_outcomes",  # what became of each family's own label, and how far off the models were that predicted it
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("decision_id", sa.String(64), sa.ForeignKey("decisions.id"), nullable=False),
    sa.Column("family", sa.String(32), nullable=False),
    sa.Column("symbol", sa.String(64), nullable=False),
    sa.Column("as_of", UtcTime, nullable=False),  # of the decision
    sa.Column("resolved_at", UtcTime, nullable=False),  # when the label ended, by the market
    sa.Column("ingested_at", UtcTime, nullable=False),
    sa.Column("label", sa.Text, nullable=False),  # JSON: a number, or class → number
    sa.Column("losses", sa.Text, nullable=False),  # JSON: digest of the bundle → loss in the family's unit
    sa.Index("family_outcomes_decision", "decision_id", "family", unique=True),
    sa.Index("family_outcomes_as_of", "family", "as_of"),
)

family_outcomes_through = sa.Table(
    "family_outcomes_through",  # newest decision of each market whose labels were looked at, found or not
    METADATA,
    sa.Column("symbol", sa.String(64), primary_key=True),
    sa.Column("through", UtcTime, nullable=False),
)

experiments = sa.Table(
    "experiments",  # append-only, chained: what was fixed when a challenger began to be compared with its champion
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("family", sa.String(32), nullable=False),  # or "policy", of the standing arms
    sa.Column("champion", sa.String(64), nullable=False),  # version
    sa.Column("champion_digest", sa.String(64), nullable=False),
    sa.Column("challenger", sa.String(64), nullable=False),
    sa.Column("challenger_digest", sa.String(64), nullable=False),
    sa.Column("unit", sa.String(32), nullable=False),  # of a gain
    sa.Column("origin_s", sa.Double, nullable=False),  # start of the first block, market time in epoch seconds
    sa.Column("horizon_s", sa.Double, nullable=False),
    sa.Column("horizons", sa.Integer, nullable=False),  # length of a block
    sa.Column("alpha", sa.Double, nullable=False),  # spent of the year's budget
    sa.Column("bound", sa.Double, nullable=False),  # block means are clipped to it
    sa.Column("least_gain", sa.Double, nullable=False),
    sa.Column("futility_alpha", sa.Double, nullable=False),
    sa.Column("max_blocks", sa.Integer, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),  # what the bound and the least gain rest on
    sa.Index("experiments_family", "family", "id"),
)

transitions = sa.Table(
    "transitions",  # append-only, chained: the states of an experiment, the last one is its present one
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("as_of_s", sa.Double, nullable=False),  # market time, epoch seconds
    sa.Column("state", sa.String(16), nullable=False),  # as `pipelines.store.ExperimentState`
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Index("transitions_experiment", "experiment", "id"),
)

block_scores = sa.Table(
    "block_scores",  # append-only, chained, never pruned: what a verdict is computed from
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.Integer, sa.ForeignKey("experiments.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # of the block, from 0
    sa.Column("start_s", sa.Double, nullable=False),  # market time, epoch seconds
    sa.Column("n", sa.Integer, nullable=False),  # outcomes that both arms scored
    sa.Column("mean", sa.Double),  # gain of the challenger, not clipped; NULL = void
    sa.Column("void", sa.Text, nullable=False),  # why the block does not count; empty where it does
    sa.Column("harm", sa.JSON, nullable=False),  # guardrail → mean over the block of what it limits
    sa.Column("at", UtcTime, nullable=False),
    sa.Index("block_scores_number", "experiment", "number", unique=True),
)
