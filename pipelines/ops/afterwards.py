"""What may be asked beside a migration: a plan before it; verification, retry and rollback after it."""

import dagster as dg

from eventsourcing.errors import EventSourcingError
from pipelines.config import MigrateConfig, RetryConfig, RollbackConfig, VerifyConfig
from pipelines.ops.journaled import JournaledMigration, Places, open_migration, request_of
from pipelines.ops.migration import migration_id_of
from pipelines.ops.reports import result_metadata, stage_metadata
from resources.databases import DatabasesResource
from resources.eventing import EventingResource
from resources.migration_journal import MigrationJournal, after_rollback
from resources.workspace import WorkspaceResource


@dg.op(tags={"kind": "migration"})
async def preview(
    context: dg.OpExecutionContext,
    config: MigrateConfig,
    eventing: EventingResource,
    databases: DatabasesResource,
    workspace: WorkspaceResource,
) -> None:
    """Say what a migration would do, and write nothing to its target or its events."""
    request = {**request_of(config), "dry_run": True}
    places = Places(eventing, databases, workspace)
    migration = await open_migration(context, migration_id_of(context, config), request, places)
    await migration.take(request)
    try:
        async with migration.working(status="running"):
            facts = await migration.engine.preview()
    except EventSourcingError as error:
        await migration.journaling.ended("failed", failure=str(error))
        raise dg.Failure(str(error), allow_retries=False) from error
    await migration.journaling.ended("completed", preview=facts, entities=facts["entities"], progress=100)
    context.add_output_metadata(result_metadata(facts))


@dg.op(tags={"kind": "migration"})
async def verify_target(
    context: dg.OpExecutionContext,
    config: VerifyConfig,
    eventing: EventingResource,
    databases: DatabasesResource,
    workspace: WorkspaceResource,
) -> None:
    """Compare the target with what was migrated; the run fails when they differ, its report says where."""
    migration = await _known(context, config.migration_id, Places(eventing, databases, workspace))
    try:
        async with migration.working():
            outcome = await migration.engine.verify()
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    await migration.journal.update(config.migration_id, verified=outcome.facts["ok"])
    context.add_output_metadata({**stage_metadata(outcome), **await migration.report()})
    if not outcome.facts["ok"]:
        raise dg.Failure("the target differs from what was migrated", allow_retries=False)


@dg.op(tags={"kind": "migration"})
async def retry_records(
    context: dg.OpExecutionContext,
    config: RetryConfig,
    eventing: EventingResource,
    databases: DatabasesResource,
    workspace: WorkspaceResource,
) -> None:
    """Run the quarantined records again, under the next attempt and the mapping as it is now."""
    changes = {} if config.mapping is None else {"mapping": config.mapping}
    places = Places(eventing, databases, workspace)
    migration = await _known(context, config.migration_id, places, **changes)
    await migration.take(changes)
    try:
        async with migration.working(status="running"):
            outcome = await migration.engine.retry()
    except EventSourcingError as error:
        await migration.ended_by(error)
        raise dg.Failure(str(error), allow_retries=False) from error
    metadata = {**stage_metadata(outcome), **await migration.report()}
    await migration.journaling.ended("completed", progress=100)
    context.add_output_metadata(metadata)


@dg.op(tags={"kind": "migration"})
async def roll_back(
    context: dg.OpExecutionContext,
    config: RollbackConfig,
    eventing: EventingResource,
    databases: DatabasesResource,
    workspace: WorkspaceResource,
) -> None:
    """Undo a migration, row by row: ROLLBACK_INITIATED to ROLLBACK_COMPLETED."""
    migration = await _known(context, config.migration_id, Places(eventing, databases, workspace))
    if config.dry_run:
        facts = await migration.engine.rollback_preview()
        await migration.journal.update(config.migration_id, rollback_preview=facts)
        context.add_output_metadata(result_metadata(facts))
        return
    await migration.take({}, status="rolling_back", after=("completed", "rolled_back"))
    try:
        async with migration.working(status="rolling_back"):
            outcome = await migration.engine.rollback(
                config.reason, to_stage=config.to_stage, force=config.force
            )
            if outcome.facts["to_stage"] is None:
                await migration.engine.verify()
    except EventSourcingError as error:
        await migration.ended_by(error)
        raise dg.Failure(str(error), allow_retries=False) from error
    await migration.journaling.ended(after_rollback(outcome.facts), rollback=outcome.facts)
    context.add_output_metadata({**stage_metadata(outcome), **await migration.report()})


async def _known(
    context: dg.OpExecutionContext, migration_id: str, places: Places, **changes: str
) -> JournaledMigration:
    """The migration of a row. Fails the op when there is none."""
    try:
        request = await MigrationJournal(places.eventing.store.storage).request(migration_id)
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    migration = await open_migration(context, migration_id, {**request, **changes}, places)
    await migration.link()
    return migration
