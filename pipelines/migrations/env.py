"""Alembic's entry point. It runs inside the transaction that `Store.open` passes in."""

from alembic import context

from pipelines.migrations.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
