"""What the user of a PostgreSQL target may not do that a run or its rollback does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from pipelines.migration.schema import Table
from pipelines.migration.worktables import runs

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def lacking(
    connection: sa.Connection, tables: Sequence[Table], sequences: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(right, what it is missing on). A right to some column counts: which ones a run writes, it has to know
    itself."""
    named = connection.dialect.identifier_preparer.quote
    for table in tables:
        for right in RIGHTS:
            on_table = sa.func.has_table_privilege(named(table.name), right)
            on_column = sa.func.has_any_column_privilege(named(table.name), right)
            if not connection.scalar(sa.select(on_table if right == "DELETE" else on_column)):
                yield right, f"table {table.name}"
    for sequence in sequences:
        if not connection.scalar(sa.select(sa.func.has_sequence_privilege(sequence, "UPDATE"))):
            yield "UPDATE", f"sequence {sequence}"
    if not sa.inspect(connection).has_table(runs.name):
        schema = sa.func.current_schema()
        if not connection.scalar(sa.select(sa.func.has_schema_privilege(schema, "CREATE"))):
            yield "CREATE", f"schema {connection.scalar(sa.select(schema))}"
