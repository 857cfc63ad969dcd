"""The stages of a migration as ops, and its undoing.

A stage that fails has emitted MIGRATION_FAILED. Under `keep` its op fails, and "Re-execute from failure"
resumes there. Under `rollback` it yields `failed` instead, which is what makes the op `compensate` run:
Dagster runs nothing after a step that failed. The run fails either way. The first stage wrote nothing
when it fails, so its op just fails.
"""

from collections.abc import Awaitable, Callable

import dagster as dg

from eventsourcing.errors import EventSourcingError
from eventsourcing.events import EventType
from eventsourcing.query import EventQuery
from pipelines.config import MigrateConfig
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.run import Migration
from pipelines.ops.journaled import JournaledMigration, Places, open_migration, request_of
from pipelines.ops.reports import plotted, stage_metadata
from resources.databases import DatabasesResource
from resources.eventing import EventingResource
from resources.workspace import WorkspaceResource

MAX_RETRIES = 3
"""How often a stage is tried again after an error that may pass; every stage can be repeated."""

Stage = Callable[[Migration], Awaitable[StageOutcome]]


def migration_id_of(context: dg.OpExecutionContext, config: MigrateConfig) -> str:
    """The id asked for, else one of the run; a re-execution has the id of the run it repeats."""
    run = context.run
    return config.migration_id or f"migration-{(run.root_run_id or run.run_id).replace('-', '')[:12]}"


def stage_op(name: str, stage: Stage, description: str, *, first: bool = False) -> dg.OpDefinition:
    """The op of one stage; all but the first wait for the stage before."""

    @dg.op(
        name=name,
        description=description,
        ins={} if first else {"after": dg.In(dg.Nothing)},
        out={
            "done": dg.Out(dg.Nothing, is_required=False),
            "failed": dg.Out(dg.Nothing, is_required=False),
        },
        tags={"kind": "migration"},
    )
    async def run_stage(  # type: ignore[no-untyped-def]  # Dagster misreads the type of an async generator
        context: dg.OpExecutionContext,
        config: MigrateConfig,
        eventing: EventingResource,
        databases: DatabasesResource,
        workspace: WorkspaceResource,
    ):
        request, places = request_of(config), Places(eventing, databases, workspace)
        migration = await open_migration(context, migration_id_of(context, config), request, places)
        if first or context.run.parent_run_id is not None:
            await migration.take(request)
        try:
            async with migration.working(status="running"):
                if context.run.parent_run_id is not None:
                    await migration.engine.start()  # re-executed from a later stage: take the target up again
                outcome = await stage(migration.engine)
        except EventSourcingError as error:
            await _failed(context, migration, error, keep=first or config.on_failure == "keep")
            yield dg.Output(None, "failed", metadata={"error": dg.MetadataValue.text(str(error))})
            return
        await migration.journaling.step_done(outcome.stage, outcome.facts)
        if first:
            await migration.link()
        metadata = stage_metadata(outcome)
        if name == "complete":
            metadata |= await migration.report()
            await migration.journaling.ended("completed")
        context.log_event(plotted(["migration", name], metadata))
        yield dg.Output(None, "done", metadata=metadata)

    return run_stage


start = stage_op(
    "start",
    Migration.start,
    "Take the target and say that the migration began: MIGRATION_STARTED.",
    first=True,
)
check_schema = stage_op(
    "check_schema", Migration.check_schema, "Compare both schemas: SCHEMA_COMPATIBILITY_CHECKED."
)
extract = stage_op("extract", Migration.extract, "Stage the source from one snapshot: DATA_EXTRACTED.")
transform = stage_op("transform", Migration.transform, "Bring it into the target's form: DATA_TRANSFORMED.")
validate = stage_op("validate", Migration.validate, "Set aside what breaks a rule: DATA_VALIDATED.")
load = stage_op("load", Migration.load, "Write the target, an event a record: DATA_IMPORTED.")
verify = stage_op("verify", Migration.verify, "Compare the target with what was migrated.")
complete = stage_op("complete", Migration.complete, "Close a migration that verified: MIGRATION_COMPLETED.")


@dg.op(ins={"failures": dg.In(dg.Nothing)}, tags={"kind": "migration"})
async def compensate(
    context: dg.OpExecutionContext,
    config: MigrateConfig,
    eventing: EventingResource,
    databases: DatabasesResource,
    workspace: WorkspaceResource,
) -> None:
    """Undo the migration whose stage failed, then fail the run.

    In a run that repeats only some ops Dagster executes this one although none of them failed: it
    undoes nothing unless the migration's last event is its failure.
    """
    migration_id = migration_id_of(context, config)
    reason = await _failure_of(migration_id, eventing)
    if reason is None and _stage_failed(context):
        raise dg.Failure("a stage failed, and the migration has nothing to undo", allow_retries=False)
    if reason is None or config.on_failure == "keep":
        context.log.info("no stage failed: there is nothing to undo")
        return
    places = Places(eventing, databases, workspace)
    migration = await open_migration(context, migration_id, request_of(config), places)
    async with migration.working(status="rolling_back"):
        outcome = await migration.engine.rollback(f"a stage failed: {reason}")
    await migration.journaling.ended("rolled_back", failure=reason)
    raise dg.Failure(f"{reason}; rolled back", metadata=stage_metadata(outcome), allow_retries=False)


async def _failed(
    context: dg.OpExecutionContext, migration: JournaledMigration, error: EventSourcingError, *, keep: bool
) -> None:
    """Record the failure; raise it when everything is kept, or while a retry may help."""
    if error.retryable and context.retry_number < MAX_RETRIES:
        raise dg.RetryRequested(MAX_RETRIES, seconds_to_wait=2**context.retry_number) from error
    await migration.engine.fail(error)
    await migration.journaling.ended("failed", failure=str(error))
    if keep:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.error(str(error))


def _stage_failed(context: dg.OpExecutionContext) -> bool:
    outputs = context.instance.get_records_for_run(context.run_id, of_type=dg.DagsterEventType.STEP_OUTPUT)
    events = [record.event_log_entry.dagster_event for record in outputs.records]
    return any(event and event.step_output_data.output_name == "failed" for event in events)


async def _failure_of(migration_id: str, eventing: EventingResource) -> str | None:
    """What the migration failed with, unless it went on since."""
    async for event in eventing.store.read(EventQuery(aggregate_id=migration_id, limit=1, backwards=True)):
        if event.event_type == EventType.MIGRATION_FAILED:
            return str(event.data["error_message"])
    return None
