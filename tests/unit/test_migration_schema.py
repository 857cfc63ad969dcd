"""Tables as they are reflected from SQLite, whose own words for types and case are few."""

from __future__ import annotations

import sqlalchemy as sa

from pipelines.migration.schema import Unique, reflect_tables

DDL = """
CREATE TABLE people (
    id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE UNIQUE, mail TEXT UNIQUE, ref UUID, seen TIMESTAMPTZ,
    extra JSONB, price NUMERIC(8, 2), odd WHATEVER, double_name TEXT AS (name || name))
"""


def test_declared_types_and_folding_are_seen() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql(DDL)
        table = reflect_tables(connection, {"people"})["people"]
    engine.dispose()
    kinds = {name: column.kind for name, column in table.columns.items()}
    assert kinds == {
        "id": "integer",
        "name": "text",
        "mail": "text",
        "ref": "uuid",
        "seen": "datetime",
        "extra": "json",
        "price": "decimal",
        "odd": "text",
        "double_name": "text",
    }
    assert {*table.unique} == {Unique(("id",)), Unique(("mail",)), Unique(("name",), ("name",))}
    assert [name for name, column in table.columns.items() if column.is_computed] == ["double_name"]
