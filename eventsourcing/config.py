"""Every setting, and the only reader of the environment.

`DATABASE_URL`, `KAFKA_BOOTSTRAP_SERVERS` and `LOG_LEVEL` keep their plain names; every other one is
`ESM_…`. A secret may come from a file named by the same name with `_FILE`. An unknown `ESM_` name or a
contradiction fails at start with one line.
"""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from eventsourcing.errors import ConfigurationError
from eventsourcing.logs import LogFormat
from eventsourcing.secrets import redact_url
from eventsourcing.tls import TlsSettings, encrypted_url, refuse_contradiction, refuse_half_a_pair

Provisioning = Literal["create", "verify", "none"]


class EventStoreConfig(BaseModel):
    """Where the events are. Without a URL: the embedded PostgreSQL of the data directory."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    database_url: str | None = None
    pool_size: int = Field(default=8, ge=1, le=100)
    append_timeout_s: float = Field(default=30.0, gt=0)


class EventBusConfig(BaseModel):
    """How events travel. Without bootstrap servers: over the store. `retry_delay` is in seconds and
    doubles with each attempt, with full jitter. `handler_timeout` bounds one attempt, `outage_pause` is
    how long nobody calls what is away; both in seconds."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kafka_bootstrap_servers: str | None = None
    topic_prefix: str = Field(default="migration", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$")
    retry_attempts: int = Field(default=3, ge=0, le=100)
    retry_delay: float = Field(default=1.0, ge=0)
    handler_timeout: float = Field(default=300.0, gt=0)
    outage_pause: float = Field(default=5.0, gt=0)
    enable_dead_letter_queue: bool = True
    kafka_options: dict[str, str | int | float | bool] = Field(default_factory=dict, repr=False)
    """Any option of librdkafka, passed to every client; some are ours to set and refused."""
    kafka_provisioning: Provisioning = "create"
    """Make the topics that are missing, only check them, or trust that they are right."""
    kafka_partitions: int = Field(default=6, ge=1, le=10_000)
    """Of every topic alike: an aggregate has the same partition in each."""
    kafka_replication_factor: int = Field(default=-1, ge=-1)
    """Copies of each new topic; -1 takes the broker's default."""
    gap_timeout: float = Field(default=10.0, gt=0)
    """Seconds that an event waits for its predecessors before they are read from the store."""


class EventReplayConfig(BaseModel):
    """How a replay runs. Delays are in seconds; `max_retries` counts after the first attempt."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    batch_size: int = Field(default=100, ge=1, le=10_000)
    delay_between_batches: float = Field(default=0.0, ge=0)
    stop_on_error: bool = False
    max_retries: int = Field(default=3, ge=0, le=100)
    retry_delay: float = Field(default=1.0, ge=0)


def _default_data_dir() -> Path:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/esm")  # the embedded server runs as another user, who must get there
    return Path.home() / ".local" / "share" / "esm"


_PLAIN = {
    "database_url": "DATABASE_URL",
    "kafka_bootstrap_servers": "KAFKA_BOOTSTRAP_SERVERS",
    "log_level": "LOG_LEVEL",
}
_SECRETS = (
    "database_url",
    "dagster_database_url",
    "target_database_url",
    "hmac_secret",
    "kafka_options",
    "tls_key_password",
)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OPTION = "ESM_KAFKA_OPTION_"
"""`ESM_KAFKA_OPTION_SASL_PASSWORD` is librdkafka's `sasl.password`."""


class Settings(TlsSettings):
    """The settings of a process."""

    model_config = SettingsConfigDict(env_prefix="ESM_", extra="ignore", hide_input_in_errors=True)

    database_url: str | None = Field(
        default=None, validation_alias=AliasChoices("database_url", "DATABASE_URL")
    )
    """The event database; unset: the embedded PostgreSQL."""
    kafka_bootstrap_servers: str | None = Field(
        default=None, validation_alias=AliasChoices("kafka_bootstrap_servers", "KAFKA_BOOTSTRAP_SERVERS")
    )
    """Kafka's address; unset: the bus over the store."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias=AliasChoices("log_level", "LOG_LEVEL")
    )
    log_format: LogFormat = "auto"
    """Lines for people, or JSON; `auto` writes for people on a terminal."""
    data_dir: Path = Field(default_factory=_default_data_dir)
    """Where the embedded PostgreSQL, Dagster's home and the work files of migrations live."""
    pool_size: int = Field(default=8, ge=1, le=100)
    topic_prefix: str = "migration"
    retry_attempts: int = Field(default=3, ge=0, le=100)
    retry_delay: float = Field(default=1.0, ge=0)
    handler_timeout: float = Field(default=300.0, gt=0)
    """How long one attempt of a handler may take, in seconds."""
    outage_pause: float = Field(default=5.0, gt=0)
    """How long a consumer group leaves alone what is away, in seconds."""
    kafka_options: Annotated[dict[str, str], NoDecode] = Field(default_factory=dict, repr=False)
    """Options of librdkafka, one `name=value` a line."""
    kafka_provisioning: Provisioning = "create"
    kafka_partitions: int = Field(default=6, ge=1, le=10_000)
    kafka_replication_factor: int = Field(default=-1, ge=-1)
    gap_timeout: float = Field(default=10.0, gt=0)
    """Seconds that an event on Kafka waits for its predecessors before they are read from the store."""
    plugins: str = ""
    """Modules to import in every process, separated by commas."""
    dagster_database_url: str | None = None
    """Dagster's own storage; unset: a database beside the event database."""
    target_database_url: str | None = None
    """The target that jobs and services know as `target`; unset: a database beside the events."""
    source_dir: Path | None = None
    """The only directory that jobs read source files from; unset: `sources` in the data directory."""
    connections_file: Path | None = None
    """The sources and targets that jobs and services know by name, as YAML; unset: none."""
    hmac_secret: str | None = None
    """Keys the hashes that stand for secret fields; unset: made once and kept in the data directory."""
    bind_host: str = "127.0.0.1"
    event_service_port: int = Field(default=8006, ge=1, le=65535)
    replay_service_port: int = Field(default=8007, ge=1, le=65535)
    dagster_port: int = Field(default=3000, ge=1, le=65535)
    launcher: Literal["embedded", "queue"] = "embedded"
    """Where long jobs run: in processes of the service that starts them, or through Dagster's run queue."""
    dagster_url: str | None = None
    """Dagster's webserver as the services reach it; unset: on this machine, at `dagster_port`."""
    dagster_code_server: Annotated[str, Field(pattern=r"^[^:/\s]+:\d{1,5}$")] | None = None
    """The `host:port` of the server that Dagster's webserver and daemon take the jobs from; unset: they load
    the jobs themselves."""
    worker_port: int | None = Field(default=None, ge=1, le=65535)
    """Where a worker serves its health and metrics; unset: nowhere."""
    allow_insecure_bind: bool = False
    """Let the services listen beyond loopback although nobody authenticates."""
    allowed_hosts: Annotated[str, Field(pattern=r"^[A-Za-z0-9.,\s-]*$")] = ""
    """Names by which the services may be called beside addresses and localhost, separated by commas; with
    authentication on, every name may be used unless this is set."""
    trusted_proxies: str = ""
    """The addresses or networks of proxies whose `X-Forwarded-For` is believed, separated by commas."""
    authentication: Literal["off", "on"] = "off"
    """Whether callers of the services must say who they are, by API key or access token."""
    oidc_issuer: str | None = None
    """The OpenID Connect issuer whose access tokens are taken beside API keys; unset: none."""
    oidc_audience: str | None = None
    """The audience that such a token must name."""
    oidc_jwks_url: str | None = None
    """Where the issuer's keys are; unset: what its discovery document says."""
    rate_limit: float = Field(default=1000.0, ge=0)
    """Requests a second that each caller may make to a service, in bursts of twice as many; 0: any number."""
    concurrent_requests: int = Field(default=128, ge=0)
    """How many requests of each caller a service works on at once, open streams included; 0: any number."""
    difference_days: int = Field(default=30, ge=1)
    """How long the rows are kept by which a replay's states differed from the live views."""
    audit_days: int = Field(default=90, ge=30)
    """How long the audit log is kept; the event database removes no entry of the last 28 days."""

    @field_validator("database_url", "dagster_database_url", "target_database_url")
    @classmethod
    def _postgresql_only(cls, url: str | None) -> str | None:
        try:
            if url is None or make_url(url).get_backend_name() == "postgresql":
                return url
        except ArgumentError:
            pass
        raise ValueError("not the URL of a PostgreSQL database, as in postgresql+asyncpg://user@host/name")

    @field_validator("kafka_options", mode="before")
    @classmethod
    def _parse_options(cls, text: str | dict[str, str]) -> dict[str, str]:
        if isinstance(text, dict):
            return text
        options: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                name, equals, value = line.partition("=")
                if not equals or not name.strip():
                    raise ValueError(f"line {number} is not name=value")
                options[name.strip()] = value.strip()
        return options

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses_only(cls, text: str) -> str:
        for proxy in text.replace(",", " ").split():
            try:
                ip_network(proxy)
            except ValueError:
                raise ValueError("must be addresses or networks, as in 10.0.0.7,192.168.0.0/24") from None
        return text

    @model_validator(mode="after")
    def _encrypted(self) -> Settings:
        refuse_half_a_pair(self)
        self.database_url = encrypted_url(self.database_url, self)
        return self

    @model_validator(mode="after")
    def _refuse_open_door(self) -> Settings:
        beyond = self.bind_host not in LOOPBACK
        if beyond and self.authentication == "off" and not self.allow_insecure_bind:
            raise ValueError(
                f"ESM_BIND_HOST={self.bind_host} would expose services without authentication; "
                "set ESM_AUTHENTICATION=on, or ESM_ALLOW_INSECURE_BIND=true to accept that"
            )
        return self

    @model_validator(mode="after")
    def _whole_issuer(self) -> Settings:
        if self.oidc_issuer is None:
            for name in ("oidc_audience", "oidc_jwks_url"):
                if getattr(self, name) is not None:
                    raise ValueError(f"ESM_{name.upper()} needs ESM_OIDC_ISSUER")
            return self
        if self.authentication == "off":
            raise ValueError("ESM_OIDC_ISSUER has no effect without ESM_AUTHENTICATION=on")
        if self.oidc_audience is None:
            raise ValueError("ESM_OIDC_ISSUER needs ESM_OIDC_AUDIENCE: a token for anyone is none for us")
        for name in ("oidc_issuer", "oidc_jwks_url"):
            url = urlsplit(getattr(self, name) or "https:")
            if url.scheme != "https" and not (url.scheme == "http" and url.hostname in LOOPBACK):
                raise ValueError(f"ESM_{name.upper()} must be an https URL")
        return self

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment. Raises ConfigurationError with one line that names the setting."""
        values = {**_from_files(), **overrides}
        _refuse_unknown(os.environ)
        options = _single_options(os.environ)
        try:
            settings = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            field = str(first["loc"][0]) if first["loc"] else ""
            name = _PLAIN.get(field.lower(), f"ESM_{field.upper()}") if field else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(redact_url(f"{name}: {message}" if name else message)) from None
        settings.kafka_options |= options
        refuse_contradiction(settings.kafka_options)
        return settings

    def store_config(self) -> EventStoreConfig:
        """The part that an EventStore needs."""
        return EventStoreConfig(database_url=self.database_url, pool_size=self.pool_size)

    def bus_config(self) -> EventBusConfig:
        """The part that an EventBus needs."""
        return EventBusConfig(
            kafka_bootstrap_servers=self.kafka_bootstrap_servers,
            topic_prefix=self.topic_prefix,
            retry_attempts=self.retry_attempts,
            retry_delay=self.retry_delay,
            handler_timeout=self.handler_timeout,
            outage_pause=self.outage_pause,
            kafka_options=dict(self.kafka_options),
            kafka_provisioning=self.kafka_provisioning,
            kafka_partitions=self.kafka_partitions,
            kafka_replication_factor=self.kafka_replication_factor,
            gap_timeout=self.gap_timeout,
        )


def _environment_name(field: str) -> str:
    return _PLAIN.get(field, f"ESM_{field.upper()}")


def _refuse_unknown(environment: os._Environ[str]) -> None:
    known = {_environment_name(field) for field in Settings.model_fields}
    known |= {f"{_environment_name(field)}_FILE" for field in _SECRETS}
    for name in sorted(environment):
        if name.startswith("ESM_") and name not in known and not name.startswith(_OPTION):
            raise ConfigurationError(f"{name} is not a setting; see the list in docs/settings.md")


def _from_files() -> dict[str, str]:
    values = {}
    for field in _SECRETS:
        name = _environment_name(field)
        path = os.environ.get(f"{name}_FILE")
        if path is None:
            continue
        if name in os.environ:
            raise ConfigurationError(f"{name} and {name}_FILE are both set")
        values[field] = _content(f"{name}_FILE", path)
    return values


def _single_options(environment: os._Environ[str]) -> dict[str, str]:
    """Options of librdkafka that have a name of their own in the environment."""
    options: dict[str, str] = {}
    for name, value in sorted(environment.items()):
        if name.startswith(_OPTION):
            plain = name.removesuffix("_FILE")
            if plain != name and plain in environment:
                raise ConfigurationError(f"{plain} and {name} are both set")
            option = plain.removeprefix(_OPTION).lower().replace("_", ".")
            options[option] = _content(name, value) if plain != name else value
    return options


def _content(name: str, path: str) -> str:
    """The text of the file that a setting names."""
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{name}: {error.strerror}: {path}") from error
