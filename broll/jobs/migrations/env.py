"""Alembic's entry: the connection comes from `Database.upgrade`."""

from alembic import context

from broll.jobs.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
