"""A store as release 0.1.0 left it: its schema, and rows of every table written in SQL, not by present code; and
decisions as every release stored them before they became records."""

import json
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from pipelines import migrations
from pipelines.migrations import tables
from pipelines.store import decision_payload

SCHEMA_010 = "0001"
PAYLOAD = {
    "id": "d1", "symbol": "BTC/USDT", "as_of": "2024-01-01T00:00:00+00:00", "known_at": "2024-01-01T00:00:00+00:00",
    "ingested_at": "2024-01-01T00:00:01.250000+00:00", "action": "BUY", "direction": 1, "confidence": 0.1 + 0.2,
    "entry": 42283.58, "stop": 42100.0, "take_profits": [42500.5], "size": 0.05,
    "expiry": "2024-01-01T04:00:00+00:00", "edge_bps": 3.5, "p": 0.6, "regime": None, "tier": 2, "arm": "champion",
    "event": "fvg", "weights": {"ict": 1.0}, "reasons": ["because é"], "generation": 3,
    "models": {"champion": {"p": 0.6}}, "lineage": {"data_hash": "abc"},
}  # fmt: skip

IDLE = PAYLOAD | {
    "id": "d2", "as_of": "2024-01-01T00:15:00+00:00", "action": "NO_TRADE", "direction": 0, "event": None, "tier": 3,
}  # fmt: skip
EVIDENCE = {"passed": True, "reasons": [], "figures": [["AUC", "0.53", "0.51 – 0.55", "900"]], "symbol": "SIM/USDT"}


def _rows(at):
    """Return table → rows in the order of its columns; `at` formats a time as the database stores it."""
    compact = {"separators": (",", ":")}
    return {
        "bars": [
            ("BTC/USDT", 1704067200.0, 42283.58, 42298.62, 42261.02, 42298.61, 35.92724, 1327.0, None,
             1704067260.0, at("00:01:02.000001")),
            ("BTC/USDT", 1704067260.0, 0.1 + 0.2, 1e300, 5e-324, -0.0, None, None, None, 1704067320.0, at("00:02:01")),
        ],
        "decisions": [
            ("d1", "BTC/USDT", at("00:00:00"), at("00:00:00"), at("00:00:01.250000"), "BUY", 1, "fvg", 2, "champion", 3,
             json.dumps(PAYLOAD, **compact), bytes(range(256)), b"\x00"),
            ("d2", "BTC/USDT", at("00:15:00"), at("00:15:00"), at("00:15:01"), "NO_TRADE", 0, None, 3, "champion", 3,
             json.dumps(IDLE, **compact), b"", b""),
        ],
        "outcomes": [("d1", at("01:00:00"), 1, "target", 150.00000000000003, 145.0, 5.0)],
        "promotions": [
            (1, at("00:00:00"), "policy", "challenge", "validator", "challenger", None, "1", "d" * 64, "r1", "h", "c",
             True, "passed the gate", json.dumps(EVIDENCE, **compact)),
            (2, at("00:00:01"), "policy", "refuse", "validator", "champion", "1", "2", None, None, None, None, None,
             "no verdict", "{}"),
        ],
        "trials": [(1, "validator", "r1", "s1", at("00:00:00")), (7, "validator", "r7", "s7", at("00:00:00"))],
        "leases": [("workspace", "host:1", at("00:00:00"), at("00:30:00"))],
        "retrain_requests": [
            (1, "validator", "drift", at("00:00:00"), "done", "host:1", at("00:30:00"), at("00:20:00"), "version 2"),
            (2, "validator", "age", at("03:00:00"), "queued", None, None, None, ""),
        ],
        "alarms": [(1, "drift", "high", "block 7", at("00:00:00"), None),
                   (2, "a", "low", "b", at("00:00:00"), at("01:00:00"))],
        "latches": [(1, "daily_loss", at("00:00:00"), "-2.3 %", at("02:00:00"), "ann", "checked the fills"),
                    (2, "daily_loss", at("05:00:00"), "-2.1 %", None, None, None)],
    }  # fmt: skip


def alembic_to(url, revision, downgrade=False):
    """Migrate a database to exactly this revision: up, or down with `downgrade`."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if downgrade else command.upgrade)(config, revision)
    engine.dispose()


def release_010(url):
    """Create the store of release 0.1.0 at `url`."""
    alembic_to(url, SCHEMA_010)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    zone = "+00" if engine.dialect.name == "postgresql" else ""
    written = _rows(lambda time: f"2024-01-01 {time if '.' in time else time + '.000000'}{zone}")
    with engine.begin() as connection:
        for table, rows in written.items():
            for row in rows:
                values = {f"v{i}": value for i, value in enumerate(row)}
                connection.execute(
                    sa.text(f"INSERT INTO {table} VALUES ({', '.join(f':{v}' for v in values)})"), values
                )
        if zone:  # ids were assigned by the database, which goes on counting after them
            for table in ("promotions", "trials", "retrain_requests", "alarms", "latches"):
                connection.exec_driver_sql(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                )
    engine.dispose()


def add_json_decision(store, record, **changes):
    """Store a decision as JSON next to its bytes, as releases with a schema before 0008 did; `changes` of its JSON."""
    names = ("id", "symbol", "as_of", "known_at", "ingested_at", "action", "direction", "event", "tier", "arm",
             "generation")  # fmt: skip
    row = {name: getattr(record.decision, name) for name in names} | {k: v for k, v in changes.items() if k in names}
    row |= {"payload": decision_payload(record.decision) | changes}
    row |= {"features": record.features, "signals": record.signals}
    with store.writing() as connection:
        connection.execute(sa.insert(tables.decisions), [row])


def contents(url):
    """Return table → every row as the driver returns it, ordered by its first columns; without Alembic's table."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        tables = sorted(set(sa.inspect(connection).get_table_names()) - {"alembic_version"})
        found = {t: connection.exec_driver_sql(f"SELECT * FROM {t} ORDER BY 1, 2").all() for t in tables}
    engine.dispose()
    return {t: [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found[t]] for t in found}
