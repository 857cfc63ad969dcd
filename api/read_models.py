"""The operators' calls on read models: look, rebuild beside the live one, see what differs, switch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.access import CurrentCaller, Scope, needs
from api.dependencies import Jobs, OpenStore, accepted, json_response, reach
from api.idempotency import DoneOnce
from api.jobs import started, submit
from api.paging import cursor_after, key_before, next_link
from api.problems import CONFLICT, ProblemError
from api.requests import JsonRoute
from api.schemas import PageParams, PathId, ReadParams, RebuildBody, problems
from eventsourcing.canonical import encode
from eventsourcing.readmodels import ReadModel, read_model
from eventsourcing.switching import describe, describe_all, difference_rows, switch

READ = problems(404, 406, 422, 503)
CHANGE = problems(400, 404, 406, 409, 413, 415, 422, 503)

read_models = APIRouter(route_class=JsonRoute, tags=["operations"])


def _model(name: PathId) -> ReadModel:
    """The read model of the path. Raises NotFoundError."""
    return read_model(name)


Model = Annotated[ReadModel, Depends(_model)]


@read_models.get(
    "/read-models", response_model=None, responses=problems(406, 422, 503), openapi_extra=needs(Scope.ADMIN)
)
async def list_read_models(store: OpenStore, params: Annotated[ReadParams, Query()]) -> Response:
    """Every read model: which generation is live, what stands beside it, how far behind each is."""
    await reach(store, params.min_position)
    return json_response(encode({"read_models": await describe_all(store.storage)}))


@read_models.get("/read-models/{name}", response_model=None, responses=READ, openapi_extra=needs(Scope.ADMIN))
async def get_read_model(store: OpenStore, model: Model, params: Annotated[ReadParams, Query()]) -> Response:
    """One read model, with the progress of a rebuild and what it found."""
    await reach(store, params.min_position)
    return json_response(encode(await describe(store.storage, model)))


@read_models.get(
    "/read-models/{name}/differences",
    response_model=None,
    responses={**READ, **problems(409)},
    openapi_extra=needs(Scope.ADMIN),
)
async def list_differences(
    request: Request,
    store: OpenStore,
    model: Model,
    caller: CurrentCaller,
    params: Annotated[PageParams, Query()],
) -> Response:
    """The rows that differed when the rebuilt generation was compared, by key, in pages. The states are
    shown to callers who may see personal data."""
    await reach(store, params.min_position)
    rows = await difference_rows(store.storage, model, after=key_before(params), limit=params.limit + 1)
    page = rows[: params.limit]
    cursor = cursor_after(page[-1].key, params) if len(rows) > params.limit else None
    hidden = () if caller.sees_personal_data else ("old", "new")
    shown = [{name: value for name, value in asdict(row).items() if name not in hidden} for row in page]
    return json_response(encode(shown), headers=next_link(request, cursor))


@read_models.post(
    "/read-models/{name}/rebuild",
    status_code=202,
    response_model=None,
    responses=CHANGE,
    openapi_extra=needs(Scope.ADMIN),
)
async def rebuild_read_model(
    store: OpenStore,
    jobs: Jobs,
    model: Model,
    once: DoneOnce,
    body: RebuildBody | None = None,
) -> Response:
    """Fold a read model anew beside the live one, as a job; an interrupted rebuild goes on. Nothing that is
    read changes."""

    async def start(token: UUID) -> Response:
        await store.initialize()
        run_id = await started(jobs, token)
        if run_id is None:
            beside = (await describe(store.storage, model))["beside"]
            if beside is not None and beside["state"] == "building":
                raise ProblemError(CONFLICT, "The read model is being rebuilt.")
            given = {"name": model.name, "fresh": body is not None and body.fresh}
            config = {"ops": {"rebuild_read_model": {"config": given}}}
            run_id = await submit(jobs, "rebuild", config, {"read_model": model.name}, token)
        content: dict[str, Any] = {
            "name": model.name,
            "status": "started",
            "dagster_run_id": run_id,
            "message": f"Rebuild of {model.name} started",
        }
        return accepted(content, f"/read-models/{model.name}")

    return await once(start)


@read_models.post(
    "/read-models/{name}/switch", response_model=None, responses=CHANGE, openapi_extra=needs(Scope.ADMIN)
)
async def switch_read_model(store: OpenStore, model: Model, once: DoneOnce) -> Response:
    """Make the generation beside the live one, at once for every reader; the same call switches back."""

    async def work(token: UUID) -> Response:
        await store.initialize()
        return json_response(encode(await switch(store.storage, model, token)))

    return await once(work)
