"""The table of events with its triggers and indexes, and the table of states."""

from alembic import op

from eventsourcing.storage.statements import statements

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Run every statement of schema_0001.sql in its order."""
    for statement in statements("schema_0001").values():
        op.execute(statement)
