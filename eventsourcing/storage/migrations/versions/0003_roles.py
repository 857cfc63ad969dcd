"""The roles of writers, readers and relays, where the migrating user may create them."""

from alembic import op

from eventsourcing.storage.statements import statements

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Run every statement of schema_0003.sql in its order."""
    for statement in statements("schema_0003").values():
        op.execute(statement)
