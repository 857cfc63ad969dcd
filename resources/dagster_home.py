"""Dagster's home below the data directory, and the environment that a Dagster process needs."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from uuid import uuid4

import yaml
from pydantic import AliasChoices

from eventsourcing.config import Settings
from resources.siblings import event_database_url, sibling_database

LOCATION = "migration"
"""The code location's name in every workspace: by it the UI finds the jobs of a run."""

DAGSTER_DATABASE = "dagster"
"""The name of Dagster's database beside the event database."""


def prepare_dagster_home(settings: Settings) -> dict[str, str]:
    """Write the home, make sure that its database is there, and return the environment for it.

    A process with this environment loads the same settings as the caller's: every setting that has a
    value is in it, the addresses of the databases resolved, so that no child starts or stops the
    embedded server. Raises ConfigurationError, UnavailableError.
    """
    home = settings.data_dir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    wanted = files("resources").joinpath("dagster.yaml").read_text("utf-8")
    _replace(home / "dagster.yaml", wanted)
    if settings.dagster_code_server is not None:
        _replace(home / "workspace.yaml", _code_server(settings.dagster_code_server))
    return {
        **environment_of(settings),
        "DATABASE_URL": event_database_url(settings),
        "ESM_DAGSTER_DATABASE_URL": dagster_database_url(settings),
        "DAGSTER_HOME": str(home.resolve()),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
    }


def dagster_database_url(settings: Settings) -> str:
    """The URL of Dagster's own storage; unset, a database beside the event database."""
    return settings.dagster_database_url or sibling_database(settings, DAGSTER_DATABASE)


def workspace_file(settings: Settings) -> Path:
    """The workspace that Dagster's webserver and daemon load: the code server that the settings name, in the
    prepared home, else the one of the checkout, or of the installed wheel."""
    if settings.dagster_code_server is not None:
        return settings.data_dir / "dagster" / "workspace.yaml"
    packaged = Path(str(files("resources").joinpath("workspace.yaml")))
    return packaged if packaged.exists() else packaged.parents[1] / packaged.name


def apply_environment(changes: dict[str, str]) -> None:
    """Make this process and its children load the same settings.

    A `…_FILE` that names one of them is taken out: both together would contradict each other.
    """
    for name, value in changes.items():
        os.environ.pop(f"{name}_FILE", None)
        os.environ[name] = value


def environment_of(settings: Settings) -> dict[str, str]:
    """Every setting that has a value, as a child process reads it."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {_variable(name): _text(value) for name, value in values.items()}


def _variable(field: str) -> str:
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[-1]) if isinstance(alias, AliasChoices) else f"ESM_{field.upper()}"


def _text(value: object) -> str:
    """A setting as the environment writes it: options are one `name=value` a line."""
    if isinstance(value, dict):
        return "\n".join(f"{name}={item}" for name, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _replace(path: Path, content: str) -> None:
    if path.exists() and path.read_text("utf-8") == content:
        return
    draft = path.with_suffix(f".{uuid4().hex}")  # in containers even process ids are the same
    draft.write_text(content, "utf-8")
    draft.replace(path)  # another process may be reading it


def _code_server(address: str) -> str:
    host, _, port = address.rpartition(":")
    server = {"host": host, "port": int(port), "location_name": LOCATION}
    return yaml.safe_dump({"load_from": [{"grpc_server": server}]})
