"""Rows of the audit are added and never changed."""

from alembic import op

from eventsourcing.storage.statements import statements

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Run every statement of schema_0004.sql in its order."""
    for statement in statements("schema_0004").values():
        op.execute(statement)
