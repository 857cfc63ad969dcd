"""The re-drive of dead letters as an op; its numbers and what it took stand beside the run."""

from typing import Any

import dagster as dg

from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.errors import EventSourcingError
from eventsourcing.redrive import ParkedSelection, RedriveResult
from eventsourcing.wording import counted
from eventsourcing.worker import group_handlers
from pipelines.config import RedriveConfig
from pipelines.ops.reports import Metadata, value_metadata
from pipelines.watch import Watch
from resources.eventing import EventingResource

SHOWN = 100
_COLUMNS = ("aggregate_id", "letters", "event_type", "redrives", "last_failed_at", "error")


@dg.op(tags={"kind": "operations"})
async def redrive_dead_letters(
    context: dg.OpExecutionContext, config: RedriveConfig, eventing: EventingResource
) -> None:
    """Show the parked aggregates that are selected and, unless it is a dry run, re-drive them."""
    selection = ParkedSelection(
        config.group,
        config.aggregate_id,
        config.event_type,
        config.fingerprint,
        aggregates=tuple(config.aggregates),
    )
    queue = DeadLetterQueue(eventing.store, eventing.settings.bus_config())
    watch = Watch(context)

    def should_stop(result: RedriveResult) -> bool:
        watch.say(
            f"{counted(result.letters, 'event')}, {counted(result.released, 'aggregate')} released, "
            f"{result.failed} failed"
        )
        return watch.stopping()

    parked = await queue.preview(selection)
    metadata = _parked_metadata(parked)
    if config.dry_run:
        context.add_output_metadata(metadata)
        return
    try:
        result = await queue.redrive(
            selection,
            group_handlers(config.group),
            by=config.by,
            why=config.why,
            cap=config.cap,
            should_stop=should_stop,
        )
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    numbers = value_metadata(
        {"events": result.letters, "released": result.released, "failed_again": result.failed}
    )
    if result.failed or result.stopped:
        why = result.stopped or f"{counted(result.failed, 'aggregate')} failed again"
        errors = value_metadata({"errors": result.errors})
        raise dg.Failure(why, metadata={**metadata, **numbers, **errors}, allow_retries=False)
    context.add_output_metadata({**metadata, **numbers})


def _parked_metadata(parked: list[dict[str, Any]]) -> Metadata:
    """How much is parked, and the first of it as a table."""
    counts = value_metadata({"aggregates": len(parked), "letters": sum(row["letters"] for row in parked)})
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in _COLUMNS}) for row in parked[:SHOWN]]
    return {**counts, "parked": dg.MetadataValue.table(records)} if records else counts


def _cell(value: Any) -> str | int:
    return value if isinstance(value, int) else str(value or "")
