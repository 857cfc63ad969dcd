"""What ops show in Dagster's UI: numbers that it plots, tables, and whole results as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from eventsourcing.canonical import decode, encode
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.report_page import entity_plot, quarantine_plot, time_plot, verdict
from pipelines.plots import picture

Metadata = dict[str, dg.MetadataValue[Any]]


def stage_metadata(outcome: StageOutcome) -> Metadata:
    """The facts of a stage: numbers as they are, the counts of its entities as a table."""
    facts: dict[str, Any] = {}
    for name, fact in outcome.facts.items():
        nested = isinstance(fact, dict) and (name.endswith("_stats") or name == "statistics")
        facts.update(fact if nested else {name: fact})
    entities = facts.pop("entities", None)
    metadata = value_metadata(facts)
    if isinstance(entities, dict) and entities:
        metadata["entities"] = _entity_table(entities)
    return metadata


def value_metadata(values: dict[str, Any]) -> Metadata:
    """Any values: numbers, flags and short texts as such, the rest as JSON."""
    return {name: _value(value) for name, value in values.items() if value is not None}


def plotted(key: Sequence[str], metadata: Metadata) -> dg.AssetObservation:
    """The numbers among the metadata as an observation: Dagster plots those of one key, run by run."""
    numbers = (dg.IntMetadataValue, dg.FloatMetadataValue)
    return dg.AssetObservation(
        key, metadata={name: value for name, value in metadata.items() if isinstance(value, numbers)}
    )


def result_metadata(result: dict[str, Any]) -> Metadata:
    """A job's result, whole."""
    return {"result": dg.MetadataValue.json(decode(encode(result)))}


def report_metadata(facts: dict[str, Any], address: str) -> Metadata:
    """A migration's report: where it is, what it says in a word, its accounting and its plots."""
    numbers: dict[str, int] = {}
    for counts in facts["entities"].values():
        for kind, count in counts.items():
            numbers[kind] = numbers.get(kind, 0) + count
    path = quote(facts["migration_id"], safe="")
    return {
        "report": dg.MetadataValue.url(f"{address}/migrations/{path}/report.html"),
        "verdict": dg.MetadataValue.text(verdict(facts)[0]),
        "accounting": _entity_table(facts["entities"]),
        "plots": dg.MetadataValue.md(_plots(facts)),
        **value_metadata({f"records_{kind}": count for kind, count in numbers.items()}),
    }


def _plots(facts: dict[str, Any]) -> str:
    """The plots as Markdown, which shows pictures but no SVG of its own: each is a picture in itself."""
    drawn = {
        "Records by outcome": entity_plot(facts, standalone=True),
        "Time by stage": time_plot(facts, standalone=True),
        "Quarantine by rule": quarantine_plot(facts, standalone=True),
    }
    return "\n\n".join(f"**{title}**\n\n{picture(title, svg)}" for title, svg in drawn.items() if svg)


def rows_metadata(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Metadata:
    """Rows as a table; nothing without rows."""
    records = [dg.TableRecord({column: _cell(row.get(column)) for column in columns}) for row in rows]
    return {name: dg.MetadataValue.table(records)} if records else {}


def _value(value: Any) -> dg.MetadataValue[Any]:
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    if isinstance(value, str):
        return dg.MetadataValue.text(value)
    return dg.MetadataValue.json(decode(encode(value)))


def _entity_table(entities: dict[str, Any]) -> dg.MetadataValue[Any]:
    columns = sorted({name for counts in entities.values() if isinstance(counts, dict) for name in counts})
    records = [
        dg.TableRecord({"entity": entity, **{name: _cell(counts.get(name)) for name in columns}})
        for entity, counts in entities.items()
        if isinstance(counts, dict)
    ]
    return dg.MetadataValue.table(records)


def _cell(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
