"""The function that begins a copied append."""

from alembic import op

from eventsourcing.storage.statements import statements

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run every statement of schema_0002.sql in its order."""
    for statement in statements("schema_0002").values():
        op.execute(statement)
