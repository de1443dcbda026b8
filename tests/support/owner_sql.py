"""SQL as the owner of the database executes it, past the triggers that refuse to change the ledger."""

import sqlalchemy as sa

GUARDED = ("promotions", "corrections", "chain", "record_parts", "parameters")


def execute_as_owner(store, statement):
    """Execute a statement on a store without its triggers."""
    with store._engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            for table in GUARDED:
                connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        else:
            for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.execute(sa.text(statement))
