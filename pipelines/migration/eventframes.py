"""The events of a chunk's records as one frame, made at the speed of columns.

A frame has the columns that `EventStore.append_frame` takes. An event's id follows from the run, the chunk
and the record's place in it (`RowIds`), all of which are durable before the first event is appended; so
a resumed run makes the same ids, which lie together in their index. Secret columns are masked before
anything is encoded.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import polars as pl
import polars.selectors as cs

from eventsourcing.canonical import encode, utc
from eventsourcing.columnar import RowIds
from pipelines.migration.context import RunContext
from pipelines.migration.keys import key_text
from pipelines.migration.plan import ChildPlan, EntityPlan
from pipelines.migration.records import MAX_KEY, is_unfit, rolled_back_class, stream_of

_MAX_STREAM = 255


def migrated_frame(
    run: RunContext,
    entity: EntityPlan,
    valid: pl.DataFrame,
    children: dict[str, pl.DataFrame],
    *,
    name: str,
    outcomes: pl.Series,
    at: datetime,
) -> pl.DataFrame | None:
    """One event for each record of a loaded chunk that was not skipped; None when it emits none.

    `name` is the chunk's in this run (`Announcer.frame_name`).

    `outcomes` says what became of each record; where the target held rows before, `action` tells it.
    """
    cls = entity.mapping.event
    if cls is None:
        return None
    natural = entity.target.pick(entity.mapping.natural_key)
    username, together = pl.col("target_data").struct.field(natural[0].name).cast(pl.String), []
    if len(natural) > 1:
        username, together = pl.col("_username"), [key_text(natural, prefix="t:").alias("_username")]
    made = valid.select(
        pl.col("_record"),
        *together,
        outcomes.alias("_outcome"),
        _struct(run, _named(valid, "s:"), entity.secret_sources).alias("source_data"),
        told_record(run, entity, valid["_record"], _named(valid, "t:")).alias("target_data"),
    )
    for child, frame in children.items():
        made = _with_children(run, entity, made, child, frame)
    told = [
        username.alias("username"),
        pl.col("source_data"),
        pl.col("target_data"),
        pl.lit(_moment(at)).alias("migrated_at"),
    ]
    if entity.policy != "fail":
        told.append(pl.col("_outcome").alias("action"))
    made = made.filter(pl.col("_outcome") != "skipped")
    streams = streams_of(run, entity, cls.declared_aggregate, made["_record"])
    data = made.select(pl.struct(told).alias("data")).to_series()
    cause = run.announcer.stage_id("validate")
    return _events(run, name, cls.declared_type, cls.declared_aggregate, streams, data, cause=cause, at=at)


def rolled_back_frame(
    run: RunContext,
    entity: EntityPlan,
    rollback_id: str,
    records: pl.DataFrame,
    *,
    name: str,
    cause: UUID,
    at: datetime,
) -> pl.DataFrame | None:
    """One event for each record that was taken back (`target_key`, `action`); None when it emits none."""
    cls = rolled_back_class(entity)
    if cls is None:
        return None
    fixed = {"rollback_id": rollback_id, "migration_id": run.migration_id}
    told = [
        *(pl.lit(text).alias(field) for field, text in fixed.items()),
        pl.col("action"),
        pl.lit(_moment(at)).alias("rolled_back_at"),
    ]
    data = records.select(pl.struct(told).alias("data")).to_series()
    streams = streams_of(run, entity, cls.declared_aggregate, records["target_key"])
    return _events(run, name, cls.declared_type, cls.declared_aggregate, streams, data, cause=cause, at=at)


def streams_of(run: RunContext, entity: EntityPlan, kind: str, keys: pl.Series) -> pl.Series:
    """The stream of each record, after the mapping's template; a key that no id may hold is hashed."""
    texts = keys.cast(pl.String)
    unfit = texts.to_frame("key").select(is_unfit(pl.col("key"))).to_series()
    if unfit.any():
        texts = pl.Series([stream_of("", text)[1:] for text in texts], dtype=pl.String)
    before, after = _around_key(run, entity, kind)
    named_key = pl.concat_str(pl.lit(before), "key", pl.lit(after))
    return texts.to_frame("key").select(named_key.alias("aggregate_id")).to_series()


def key_room(run: RunContext, entity: EntityPlan) -> int:
    """How many characters a key may have that stands in the name of its record's stream as it is."""
    cls = entity.mapping.event
    around = _around_key(run, entity, cls.declared_aggregate) if cls is not None else ()
    return min(MAX_KEY, _MAX_STREAM - sum(map(len, around)))


def _around_key(run: RunContext, entity: EntityPlan, kind: str) -> tuple[str, str]:
    """What stands before and after the key in the names of an entity's streams."""
    named = {"kind": kind, "entity": entity.name, "target": run.target.describe()["database"]}
    before, after = entity.mapping.stream.split("{key}")
    return before.format(**named), after.format(**named)


def _events(
    run: RunContext,
    name: str,
    event_type: str,
    aggregate_type: str,
    streams: pl.Series,
    data: pl.Series,
    *,
    cause: UUID,
    at: datetime,
) -> pl.DataFrame:
    fixed = {
        "event_type": str(event_type),
        "aggregate_type": aggregate_type,
        "correlation_id": str(run.row.correlation_id),
        "causation_id": str(cause),
        "metadata": encode(run.announcer.metadata, field="metadata").decode(),
    }
    ids = RowIds(name, run.row.started_at).of(0, streams.len())
    columns = [
        pl.Series("event_id", ids, dtype=pl.String),
        streams.alias("aggregate_id"),
        data.alias("data"),
    ]
    moment = pl.lit(utc(at)).cast(pl.Datetime("us", "UTC")).alias("timestamp")
    return pl.DataFrame(columns).with_columns(
        moment, *(pl.lit(text).alias(name) for name, text in fixed.items())
    )


def told_record(run: RunContext, entity: EntityPlan, keys: pl.Series, rows: pl.DataFrame) -> pl.Series:
    """What an event says is in the target, the children aside: of rows that have the mapping's fields in
    its order, and of their keys."""
    secret = frozenset(name for name, field in entity.fields.items() if field.secret)
    if len(entity.target_key) == 1:  # else all of it is mapped
        rows = rows.with_columns(keys.alias(*entity.target.key))
    return _struct(run, rows, secret)


def told_children(run: RunContext, child: ChildPlan, rows: pl.DataFrame) -> pl.Series:
    """What an event says of a record's children: of rows that have the columns made, in their order."""
    return _struct(run, rows, child.secret)


def _named(frame: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """The columns of a prefix under their own names."""
    return frame.select(pl.col(name).alias(name[2:]) for name in frame.columns if name.startswith(prefix))


def _struct(run: RunContext, rows: pl.DataFrame, secret: frozenset[str]) -> pl.Series:
    """Rows as JSON writes them, the secret columns masked."""
    masked = [run.masker.mask_all(rows[name]) for name in rows.columns if name in secret]
    return rows.with_columns(masked).with_columns(_json_forms()).to_struct("struct")


def _with_children(
    run: RunContext, entity: EntityPlan, made: pl.DataFrame, name: str, frame: pl.DataFrame
) -> pl.DataFrame:
    """The records with a list of their children under `target_data`."""
    rows = frame.select(
        "_record", told_children(run, entity.children[name], _named(frame, "t:")).alias("_child")
    )
    grouped = rows.group_by("_record", maintain_order=True).agg(pl.col("_child"))
    joined = made.join(grouped, on="_record", how="left", maintain_order="left")
    children = pl.col("_child").fill_null(pl.lit([], dtype=grouped.schema["_child"])).alias(name)
    return joined.with_columns(pl.col("target_data").struct.with_fields(children)).drop("_child")


def _json_forms() -> list[pl.Expr]:
    """What JSON has no form for, in its canonical one."""
    whole = pl.col(pl.Datetime)
    fraction = whole.dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ")
    return [
        pl.when(whole.dt.microsecond() == 0)
        .then(whole.dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
        .otherwise(fraction),
        cs.date().dt.to_string("%Y-%m-%d"),
        cs.binary().bin.encode("base64"),
    ]


def _moment(at: datetime) -> str:
    return utc(at).isoformat().replace("+00:00", "Z")
