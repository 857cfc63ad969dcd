"""The backfill as an op: past events of a file in the source directory, at the dates when they happened."""

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dagster as dg

from eventsourcing.backfill import BackfillManifest
from eventsourcing.errors import ConfigurationError, EventSourcingError
from eventsourcing.event_files import rows_of_file
from pipelines.config import BackfillConfig
from pipelines.ops.reports import plotted, value_metadata
from pipelines.watch import Watch
from resources.connections import source_file
from resources.eventing import EventingResource


@dg.op(tags={"kind": "operations"})
async def backfill_events(
    context: dg.OpExecutionContext, config: BackfillConfig, eventing: EventingResource
) -> None:
    """Append the events of a file; a second run appends nothing, and completes one that was cut off."""
    watch = Watch(context)

    def tell(stage: str, done: int, total: int) -> None:
        watch.say(f"{stage} {done} of {total} events")
        watch.check()

    try:
        done = await eventing.store.backfill(
            rows_of_file(source_file(eventing.settings, config.file)),
            name=config.name or config.file,
            merge=config.merge,
            zone=_zone(config.timezone),
            on_progress=tell,
        )
    except (EventSourcingError, ValueError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    _report(context, done)


def _report(context: dg.OpExecutionContext, done: BackfillManifest) -> None:
    numbers = value_metadata(
        {"events": done.events, "appended": done.appended, "repeated_rows": done.repeated}
    )
    dates = {"first": done.first and done.first.isoformat(), "last": done.last and done.last.isoformat()}
    context.log_event(plotted(["backfill"], numbers))
    context.add_output_metadata({**numbers, **value_metadata({"name": done.name, **dates})})


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError):
        raise ConfigurationError(f"{name} is no time zone") from None
