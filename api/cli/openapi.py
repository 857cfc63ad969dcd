"""`esm openapi`: write the OpenAPI documents of both services, which are what clients are built against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from api.cli.screen import console

app = typer.Typer(help="The OpenAPI documents of the services.")


def documents() -> dict[str, dict[str, Any]]:
    """The document of each service by its file's name."""
    from api import event_service, replay_service  # loads FastAPI, which other commands do without

    return {
        "event-service.json": event_service.create_app().openapi(),
        "replay-service.json": replay_service.create_app().openapi(),
    }


def as_text(document: dict[str, Any]) -> str:
    """A document as it is kept in a file."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() + "\n"


@app.callback(invoke_without_command=True)
def write(
    directory: Annotated[Path, typer.Argument(help="Where the two files go, as in docs/openapi.")],
) -> None:
    """Write the documents of the code into a directory, whatever stands there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        (directory / name).write_text(as_text(document), "utf-8")
        console.print(f"{directory / name} holds {len(document['paths'])} paths.")
