"""Whose pages may reach a service that asks nobody who they are: only its own, under names that it has.

A browser sends what any page on the web tells it to, to loopback too, and hands the answer to a page whose
own name was pointed here (DNS rebinding). So while authentication is off a request must name this machine by
an address, as `localhost` or as the settings say, and must not come from another page; following a link is
allowed. Programs that are no browsers send of these headers only `Host`. Callers who must say who they are
need none of this: no page has their key. `request.url` is not read anywhere: it is made of such headers.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import FOREIGN_HOST, FOREIGN_PAGE, Kind, ProblemError, problem_response
from eventsourcing import Settings

_OWN_PAGES = (b"same-origin", b"none")
"""What `Sec-Fetch-Site` says of requests by our own pages, and by people."""


class OwnPages:
    """What is demanded of the headers of a request; of a server that `asks_who` calls, the names that
    `ESM_ALLOWED_HOSTS` lists, if it lists any, and nothing else."""

    def __init__(self, settings: Settings, *, asks_who: bool) -> None:
        self._is_open = not asks_who
        self._is_asked = self._is_open or bool(settings.allowed_hosts)
        self._names = frozenset(settings.allowed_hosts.lower().replace(",", " ").split())
        self._knows = lru_cache(maxsize=256)(self._is_ours)

    def objection(self, scope: Scope) -> Kind | None:
        """Why a request is refused before anything else is asked of it; None: it is not."""
        if not self._is_asked:
            return None
        host, origin, site, mode, hosts = b"", None, b"none", b"", 0
        for name, value in scope["headers"]:
            if name == b"host":
                host, hosts = value, hosts + 1
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"sec-fetch-mode":
                mode = value
        if hosts > 1 or (host and not self._knows(host)):
            return FOREIGN_HOST
        if not self._is_open:
            return None
        if origin is not None:
            page = origin.partition(b"://")[2].lower()
            return None if page == host.lower() or _name_of(page) in self._names else FOREIGN_PAGE
        follows_link = mode == b"navigate" and scope.get("method") == "GET"
        return None if site in _OWN_PAGES or follows_link else FOREIGN_PAGE

    def _is_ours(self, host: bytes) -> bool:
        """Whether a `Host` names us. Nobody can point an address elsewhere, so every address is taken."""
        name = _name_of(host)
        if name in self._names or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


class OwnPagesOnly:
    """The layer of a service that refuses the pages of others; its lifespan sets `own_pages` of the state."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it with a 403 problem."""
        own_pages: OwnPages | None = getattr(self._state, "own_pages", None)
        asked = own_pages is not None and scope["type"] in ("http", "websocket")
        kind = own_pages.objection(scope) if asked and own_pages is not None else None
        if kind is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await problem_response(ProblemError(kind, kind.meaning))(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": kind.title})


def _name_of(authority: bytes) -> str:
    """The name or address of a `Host`, in lower case, without its port."""
    text = authority.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return name.removesuffix(".")
