"""What stands before every route that needs a scope: the gate, and the audit of who went through it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from fastapi import FastAPI, Request, Response

from api.access import Scope
from api.audit_log import AuditLog
from api.gate import Gate
from api.origins import OwnPages
from api.problems import status_of
from eventsourcing.bootstrap import System

Serve = Callable[[Request], Awaitable[Response]]


class Doors:
    """The gate and the audit log of one service."""

    def __init__(self, gate: Gate, audit: AuditLog) -> None:
        self.gate, self.audit = gate, audit

    async def through(
        self, request: Request, serve: Serve, *, scope: Scope, action: str, route: str
    ) -> Response:
        """Serve an admitted request, and record it whatever comes of it. See Gate.admit for refusals."""
        act = None
        try:
            await self.gate.admit(request, scope)
            if request.method not in ("GET", "HEAD") and scope is not Scope.APPEND:
                act = await self.audit.begin_act(request, action)
            response = await serve(request)
            outcome = str(response.status_code)
        except Exception as error:
            outcome = str(status_of(error))
            raise
        except BaseException:
            outcome = "broken off"
            raise
        finally:
            if act is None:
                self.audit.note(request, action, route, outcome)
            else:
                await self.audit.complete_act(act, outcome)
        return response


@asynccontextmanager
async def open_doors(app: FastAPI, system: System) -> AsyncIterator[None]:
    """Let callers in to the application, over `app.state.doors`, until the end."""
    gate = Gate(system.settings, system.store.storage)
    kept = timedelta(days=system.settings.audit_days)
    async with AuditLog(system.store.storage, kept=kept).running() as audit:
        app.state.doors = Doors(gate, audit)
        app.state.own_pages = OwnPages(system.settings, asks_who=system.settings.authentication == "on")
        yield


async def admitted_to(request: Request, scope: Scope) -> bool:
    """Whether the caller of a request could make one now that needs this scope."""
    doors: Doors = request.app.state.doors
    return await doors.gate.still_admits(request, scope)
