"""Process models against the store as an op: the run fails where a stream broke one, and names the event."""

from typing import Any

import dagster as dg

from eventsourcing.errors import EventSourcingError
from eventsourcing.process_checks import check_process, check_processes
from eventsourcing.process_models import ProcessModel, process_model
from pipelines.config import ProcessesConfig
from pipelines.ops.reports import Metadata, rows_metadata, value_metadata
from resources.eventing import EventingResource

SHOWN = 100
_COLUMNS = ("subject", "reason", "aggregate_id", "event_version", "position", "expected", "actual")


@dg.op(tags={"kind": "validation"})
async def keep_to_process(
    context: dg.OpExecutionContext, config: ProcessesConfig, eventing: EventingResource
) -> None:
    """Check one aggregate, or all subjects of a process model; fail and name the first that broke it."""
    try:
        model = process_model(config.model)
        facts, violations = await _checked(eventing, model, config.aggregate_id)
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    rows = [{**row, "expected": " | ".join(row["expected"])} for row in violations[:SHOWN]]
    told: Metadata = {**value_metadata(facts), **rows_metadata("violations", _COLUMNS, rows)}
    if violations:
        first = violations[0]
        expected = " or ".join(first["expected"]) or "nothing more"
        raise dg.Failure(
            f"{first['subject']!r} broke {model.name!r} at position {first['position']}: "
            f"expected {expected}, found {first['actual'] or 'nothing'} ({first['reason']})",
            metadata=told,
            allow_retries=False,
        )
    context.add_output_metadata(told)


async def _checked(
    eventing: EventingResource, model: ProcessModel, aggregate_id: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was looked at, and the violations in the order of the store."""
    if aggregate_id is not None:
        found = await check_process(eventing.store, model, aggregate_id)
        facts = {"aggregate_id": found["aggregate_id"], "status": found["status"], "events": found["events"]}
        return facts, [found["violation"]] if found["violation"] else []
    summary = await check_processes(eventing.store, model)
    facts = {name: getattr(summary, name) for name in ("subjects", "events", "broken", "position")}
    return facts, [violation.facts() for violation in summary.violations]
