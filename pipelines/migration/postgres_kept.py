"""What PostgreSQL keeps: which tables give back of an inserted row exactly what they were given."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

_KEPT = re.compile(
    "smallint|integer|bigint|boolean|uuid|date|bytea|text|character varying.*|timestamp with(out)? time zone"
)
"""Types that keep every value. `char(n)` pads; `numeric(p, s)`, `real` and `timestamp(n)` round; `jsonb`
sorts."""
_ON_INSERT = 4
"""TRIGGER_TYPE_INSERT of PostgreSQL's pg_trigger.h."""

_classes = sa.table("pg_class", *map(sa.column, ("oid", "relkind"))).c
_triggers = sa.table("pg_trigger", *map(sa.column, ("tgrelid", "tgisinternal", "tgtype"))).c
_attributes = sa.table(
    "pg_attribute",
    *map(sa.column, ("attrelid", "attname", "attnum", "attisdropped", "attgenerated")),
    *map(sa.column, ("atttypid", "atttypmod")),
).c


def keeps_inserts(connection: sa.Connection, table: str, columns: Sequence[str]) -> bool:
    """See TargetTransaction.keeps_inserts. The table is named as SQL quotes it.

    A partitioned table, a view or a foreign one may have triggers elsewhere: of these nothing is known.
    """
    has_trigger = sa.exists().where(
        _triggers.tgrelid == _classes.oid,
        sa.not_(_triggers.tgisinternal),
        _triggers.tgtype.op("&")(_ON_INSERT) != 0,
    )
    statement = (
        sa.select(_attributes.attname, sa.func.format_type(_attributes.atttypid, _attributes.atttypmod))
        .where(_classes.oid == sa.cast(table, pg.REGCLASS), _classes.relkind == "r", ~has_trigger)
        .where(_attributes.attrelid == _classes.oid, _attributes.attnum > 0)
        .where(~_attributes.attisdropped, _attributes.attgenerated == "")
    )
    types = dict(connection.execute(statement).tuples().all())
    return {*types} == {*columns} and all(map(_KEPT.fullmatch, types.values()))
