"""Alembic's entry: run the migrations on the connection that `storage.upgrades` hands over."""

from alembic import context

from eventsourcing.storage.schema import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
