"""Read models made anew beside the live ones, and snapshots held against their events."""

from typing import Any

import dagster as dg

from eventsourcing.errors import EventSourcingError
from eventsourcing.readmodels import read_model
from eventsourcing.rebuilds import RebuildProgress, rebuild
from eventsourcing.snapshots import list_snapshots, verify_snapshot
from eventsourcing.switching import describe, difference_rows, switch
from eventsourcing.wording import counted
from pipelines.config import RebuildConfig, VerifySnapshotsConfig
from pipelines.ops.reports import Metadata, plotted, result_metadata, rows_metadata, value_metadata
from pipelines.plots import curve
from pipelines.watch import Watch
from resources.eventing import EventingResource

SHOWN = 100
_PAGE = 100


@dg.op(tags={"kind": "read model"})
async def rebuild_read_model(
    context: dg.OpExecutionContext, config: RebuildConfig, eventing: EventingResource
) -> None:
    """Fold a read model anew beside the live one, show how they differ, and switch when that is asked for."""
    watch, storage, points = Watch(context), eventing.store.storage, [(0.0, 0.0)]

    async def report(progress: RebuildProgress) -> bool:
        points.append((progress.position / progress.rate if progress.rate else 0.0, progress.position))
        watch.say(f"{progress.progress:.1f} %, {progress.rate:.0f} positions/s")
        return not watch.stopping()

    try:
        model = read_model(config.name)
        rebuilt = await rebuild(storage, model, fresh=config.fresh, report=report)
        if rebuilt.difference is None:
            raise dg.Failure("cancelled; the same job goes on", allow_retries=False)
        differing = await difference_rows(storage, model, limit=SHOWN)
        if config.switch:
            await switch(storage, model)
        told = await describe(storage, model)
    except EventSourcingError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    rate = rebuilt.position / rebuilt.duration if rebuilt.duration else 0.0
    facts = {"position": rebuilt.position, "duration": rebuilt.duration, "rate": rate}
    numbers = value_metadata({**facts, **rebuilt.difference.to_dict()})
    context.log_event(plotted(["rebuild", config.name], numbers))
    rows = [{"key": row.key, "kind": row.kind, "fields": ", ".join(row.fields)} for row in differing]
    shown: Metadata = {**numbers, **rows_metadata("differences", ("key", "kind", "fields"), rows)}
    if plot := curve("Positions folded", points, x_unit="s", y_unit="positions"):
        shown["progress"] = dg.MetadataValue.md(plot)
    context.add_output_metadata({**shown, **result_metadata(told)})


@dg.op(tags={"kind": "snapshot"})
async def hold_snapshots(
    context: dg.OpExecutionContext, config: VerifySnapshotsConfig, eventing: EventingResource
) -> None:
    """Hold snapshots against a fresh fold of their events; the run fails when one is not what they come to.

    A stale one, of an older fold, is counted and no fault.
    """
    watch, after = Watch(context), None
    counts, broken = {"verified": 0, "stale": 0, "broken": 0}, list[dict[str, Any]]()
    while True:
        page = await list_snapshots(eventing.store.storage, config.aggregate_id, after=after, limit=_PAGE)
        for row in page:
            watch.check()
            after = (row["aggregate_id"], row["version"])
            verdict = await verify_snapshot(eventing.store, *after)
            counts["verified"] += 1
            counts["stale"] += verdict.is_stale
            if not verdict.is_valid and not verdict.is_stale:
                counts["broken"] += 1
                broken.append(
                    {
                        "aggregate_id": verdict.aggregate_id,
                        "version": verdict.version,
                        "is_intact": verdict.is_intact,
                        "fields": ", ".join(verdict.fields),
                    }
                )
        watch.say(f"{counts['verified']} snapshots verified, {counts['broken']} broken")
        if len(page) < _PAGE:
            break
    columns = ("aggregate_id", "version", "is_intact", "fields")
    told: Metadata = {**value_metadata(counts), **rows_metadata("differing", columns, broken[:SHOWN])}
    if broken:
        raise dg.Failure(
            f"{counted(len(broken), 'snapshot')} other than what the events come to; the first is of "
            f"{broken[0]['aggregate_id']!r}",
            metadata=told,
            allow_retries=False,
        )
    context.add_output_metadata(told)
