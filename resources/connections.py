"""The sources, targets and mapping files that jobs and services may use: by name, and by nothing else.

`ESM_CONNECTIONS_FILE` names a YAML file of two sections, `sources` and `targets`, name by name a URL or
`{url_file: …}`. Beside them a source may be a file below the source directory, the target named `target`
is the one of the settings, and mapping files lie below `mappings` in the data directory. A caller gives
names; no name leads to an address that the operator did not write down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from eventsourcing.config import Settings
from eventsourcing.errors import ConfigurationError, NotFoundError
from resources.siblings import sibling_database

TARGET = "target"
"""The name under which jobs know the configured target, and of its database where none is configured."""

DEMO_TARGET = "demo-target"
"""The target of the demo: a database beside the events that every demo makes anew."""

_SUFFIXES = {".csv": "csv"}
"""What a file in the source directory is read as; any other one is a SQLite database."""


def _resolved(value: Any) -> Any:
    if isinstance(value, dict) and {*value} == {"url_file"}:
        try:
            value = Path(str(value["url_file"])).read_text("utf-8").strip()
        except OSError as error:
            raise ValueError(f"url_file cannot be read: {error.strerror}") from None
    if not isinstance(value, str):
        raise ValueError("must be a URL, or {url_file: a file that holds one}")  # noqa: TRY004 - pydantic's
    try:
        make_url(value)
    except ArgumentError:
        raise ValueError("is not a database URL such as postgresql://user@host/name") from None
    return value


_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Url = Annotated[str, BeforeValidator(_resolved)]


class Connections(BaseModel):
    """What the connections file says."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    sources: dict[_Name, _Url] = {}
    targets: dict[_Name, _Url] = {}


def read_connections(settings: Settings) -> Connections:
    """The named connections. Raises ConfigurationError with one line that holds no URL."""
    path = settings.connections_file
    if path is None:
        return Connections()
    where = f"ESM_CONNECTIONS_FILE {path.name}"
    try:
        found = Connections.model_validate(yaml.safe_load(path.read_text("utf-8")) or {})
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror}") from None
    except yaml.YAMLError:
        raise ConfigurationError(f"{where}: is not YAML") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigurationError(f"{where}: {place}: {message}") from None
    for name in (TARGET, DEMO_TARGET):
        if name in found.targets:
            raise ConfigurationError(f"{where}: targets.{name}: is a name that the system gives itself")
    return found


def source_url(settings: Settings, name: str) -> str:
    """The URL of a named source, or of a file below the source directory.

    Raises NotFoundError for any other name, one that leaves the directory by a link included.
    """
    named = read_connections(settings).sources.get(name)
    if named is not None:
        return named
    path = source_file(settings, name)
    driver = _SUFFIXES.get(path.suffix.lower(), "sqlite")
    return URL.create(driver, database=str(path)).render_as_string(hide_password=False)


def source_file(settings: Settings, name: str) -> Path:
    """A file below the source directory. Raises NotFoundError for any other name."""
    path = _below(source_directory(settings), name)
    if path is None:
        raise NotFoundError("source", name)
    return path


def target_url(settings: Settings, name: str) -> str:
    """The URL of a named target. Raises NotFoundError for any other name."""
    named = read_connections(settings).targets.get(name)
    if named is not None:
        return named
    if name == DEMO_TARGET:
        return sibling_database(settings, DEMO_TARGET.replace("-", "_"))
    if name != TARGET:
        raise NotFoundError("target", name)
    return settings.target_database_url or sibling_database(settings, TARGET)


def knows_target(settings: Settings, name: str) -> bool:
    """Whether a target has this name; nothing is connected."""
    return name in (TARGET, DEMO_TARGET) or name in read_connections(settings).targets


def mapping_file(settings: Settings, name: str) -> Path:
    """A mapping file below `mappings`, with or without `.yaml`. Raises NotFoundError."""
    shelf = mapping_directory(settings)
    for candidate in (name, f"{name}.yaml"):
        path = _below(shelf, candidate)
        if path is not None:
            return path
    raise NotFoundError("mapping", name)


def source_directory(settings: Settings) -> Path:
    """Where source files lie."""
    return settings.source_dir or settings.data_dir / "sources"


def mapping_directory(settings: Settings) -> Path:
    """Where mapping files lie."""
    return settings.data_dir / "mappings"


def _below(directory: Path, name: str) -> Path | None:
    """The file of a name below a directory, wherever links lead; None for none or one that is elsewhere."""
    if "\x00" in name or not name:
        return None
    directory = directory.resolve()
    try:
        path = (directory / name).resolve()
        return path if path.is_relative_to(directory) and path.is_file() else None
    except (OSError, RuntimeError):  # a name too long, or a circle of links
        return None
