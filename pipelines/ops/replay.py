"""Replay, snapshot and sequence validation as ops. Their results are rows of ours, copied to the run."""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import ValidationError

from eventsourcing.errors import EventSourcingError, InvalidEventError
from eventsourcing.events import EventType
from eventsourcing.process_checks import check_process
from eventsourcing.process_models import process_model
from eventsourcing.query import EventQuery
from eventsourcing.replay import EventReplay, require_events
from eventsourcing.replay_runs import run_replay
from eventsourcing.replays import ReplayJournal, ReplayRequest
from eventsourcing.shadows import forget_differences
from eventsourcing.snapshots import newest_snapshot
from eventsourcing.wording import counted
from pipelines.config import ReplayConfig, SequenceConfig, SnapshotConfig, SnapshotsConfig
from pipelines.ops.reports import Metadata, plotted, result_metadata, rows_metadata, value_metadata
from pipelines.plots import Points, curve
from pipelines.watch import Watch
from resources.eventing import EventingResource
from resources.results import JobResults


@dg.op(tags={"kind": "replay"})
async def replay_events(
    context: dg.OpExecutionContext, config: ReplayConfig, eventing: EventingResource
) -> None:
    """Run stored events through the handlers again, into states of their own."""
    watch = Watch(context)
    points = [(0.0, 0.0)]

    async def should_stop() -> bool:
        return watch.stopping()

    def on_progress(row: dict[str, Any]) -> None:
        points.append((row["duration"], row["processed_events"]))
        watch.say(f"{row['processed_events']} events, {row['progress']:.1f} %, {row['rate']:.0f} events/s")

    journal = ReplayJournal(eventing.store.storage)
    kept = timedelta(days=eventing.settings.difference_days)
    try:
        await forget_differences(eventing.store.storage, older_than=kept)
        replay_id = config.replay_id or await journal.create(_request(config))
        context.instance.add_run_tags(context.run_id, {"replay_id": replay_id})
        await journal.update(replay_id, dagster_run_id=context.run_id)
        row = await run_replay(eventing.store, replay_id, should_stop=should_stop, on_progress=on_progress)
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    report_replay(context, row, [*points, (row["duration"], row["processed_events"])])
    differing = differing_rows(row)
    if config.fail_on_difference and differing:
        raise dg.Failure(
            f"the live views differ from the events in {counted(differing, 'row')}",
            metadata=result_metadata(row),
            allow_retries=False,
        )


def differing_rows(row: dict[str, Any]) -> int:
    """How many rows of the live views a replay found to be otherwise; 0 where it compared none."""
    found = row.get("difference") or {}
    return sum(int(part.get("rows", 0)) for part in found.values() if isinstance(part, dict))


def report_replay(context: dg.OpExecutionContext, row: dict[str, Any], points: Points) -> None:
    """Put a replay's row beside its run, its numbers and its course in plots; fail the run unless it
    completed."""
    numbers = value_metadata(
        {name: row[name] for name in ("processed_events", "failed_events", "rate", "duration")}
    )
    context.log_event(plotted(["replay", row["replay_type"]], numbers))
    told: Metadata = {**numbers, **rows_metadata("errors", _ERROR, row["errors"]), **_states(row)}
    if plot := curve("Events replayed", points, x_unit="s", y_unit="events"):
        told["progress"] = dg.MetadataValue.md(plot)
    told |= result_metadata(row)
    if row["status"] != "completed":
        raise dg.Failure(f"the replay is {row['status']}", metadata=told, allow_retries=False)
    context.add_output_metadata(told)


def _states(row: dict[str, Any]) -> Metadata:
    """The hash of what each handler made of the events."""
    hashes = row.get("state_hashes", {})
    return rows_metadata(
        "states", ("handler", "hash"), [{"handler": h, "hash": v} for h, v in hashes.items()]
    )


_ERROR = ("event_id", "event_type", "handler", "attempts", "error")


@dg.op(tags={"kind": "snapshot"})
async def create_snapshot(
    context: dg.OpExecutionContext, config: SnapshotConfig, eventing: EventingResource
) -> None:
    """Fold an aggregate into its state, and store that as a snapshot."""
    await _answer(
        context,
        eventing,
        config.result_id,
        EventReplay(eventing.store).create_snapshot(config.aggregate_id, config.up_to_version),
    )


_ENDS = (
    EventType.MIGRATION_COMPLETED,
    EventType.MIGRATION_FAILED,
    EventType.ROLLBACK_COMPLETED,
)


@dg.op(tags={"kind": "snapshot"})
async def create_snapshots(
    context: dg.OpExecutionContext, config: SnapshotsConfig, eventing: EventingResource
) -> None:
    """Store a snapshot of every migration that ended lately and went on since its last snapshot."""
    store, watch = eventing.store, Watch(context)
    since = datetime.now(UTC) - timedelta(days=config.days)
    ended: dict[str, None] = {}
    async for event in store.read(EventQuery(event_types=_ENDS, from_timestamp=since)):
        ended[event.data.get("migration_id") or event.aggregate_id] = None
    made: list[dict[str, Any]] = []
    for migration_id in ended:
        watch.check()
        kept = await newest_snapshot(store.storage, migration_id) or {"version": 0, "position": 0}
        query = EventQuery(aggregate_id=migration_id, limit=1, backwards=True)
        last = [event.event_version async for event in store.read(query)]
        if last and last[0] > kept["version"]:
            snapshot = await EventReplay(store).create_snapshot(migration_id)
            made.append({**snapshot, "events": snapshot["replay_result"]["total_events"]})
    columns = ("aggregate_id", "version", "position", "events", "state_hash")
    context.add_output_metadata(
        {
            **value_metadata({"ended": len(ended), "snapshots": len(made)}),
            **rows_metadata("made", columns, made),
        }
    )


@dg.op(tags={"kind": "validation"})
async def check_sequence(
    context: dg.OpExecutionContext, config: SequenceConfig, eventing: EventingResource
) -> None:
    """Compare the event types of an aggregate with those it should have, or with a process model."""
    await _answer(context, eventing, config.result_id, _validated(config, eventing))


async def _validated(config: SequenceConfig, eventing: EventingResource) -> dict[str, Any]:
    if config.model is not None:
        return await check_process(eventing.store, process_model(config.model), config.aggregate_id)
    await require_events(eventing.store, config.aggregate_id)
    replay = EventReplay(eventing.store)
    return await replay.validate_event_sequence(config.aggregate_id, config.expected_sequence or [])


async def _answer(
    context: dg.OpExecutionContext,
    eventing: EventingResource,
    result_id: str | None,
    question: Awaitable[dict[str, Any]],
) -> None:
    """Keep the answer, or why there is none, under the result's id; fail the run without an answer."""
    results, key = JobResults(eventing.store.storage), result_id or context.run_id
    try:
        result = await question
    except EventSourcingError as error:
        await results.put_error(key, error)
        raise dg.Failure(str(error), allow_retries=False) from error
    await results.put(key, result)
    context.add_output_metadata({"result_id": dg.MetadataValue.text(key), **result_metadata(result)})


def _request(config: ReplayConfig) -> ReplayRequest:
    try:
        return ReplayRequest.model_validate(config.request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidEventError(first["msg"], field=path or "request") from None
