"""What is wrong with the event database, with those who follow it, and with Kafka; and what helps.

Each check looks at the real thing and changes nothing. A check that cannot look because another one failed
is left out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import asyncpg
from sqlalchemy.engine import make_url

from eventsourcing.bootstrap import System
from eventsourcing.config import EventBusConfig
from eventsourcing.dead_letter_queue import DeadLetterQueue
from eventsourcing.errors import ConfigurationError, EventSourcingError, UnavailableError
from eventsourcing.events import registered_events
from eventsourcing.lag import Lag, lags
from eventsourcing.readmodels import READ_MODELS
from eventsourcing.storage.postgres_errors import translated
from eventsourcing.storage.postgres_pool import CONNECT_TIMEOUT_S, dsn
from eventsourcing.storage.schema import newest_version, schema_version
from eventsourcing.storage.statements import statements
from eventsourcing.wording import counted

Status = Literal["ok", "warning", "failed"]

OLD_APPEND_S = 10.0
BEHIND_S = 60.0
CLOCKS_DIFFER_S = 5.0
ROLES = ("esm_reader", "esm_relay", "esm_writer")

_SQL = statements("diagnosis")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `cure` says what to do about it, "" where nothing is to be done."""

    check: str
    status: Status
    says: str
    cure: str = ""


async def database_findings(
    url: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> AsyncIterator[Finding]:
    """Whether the event database answers, has the schema of this program, and lets us do our work."""
    began = time.perf_counter()
    try:
        found = await schema_version(url)
    except EventSourcingError as error:
        yield Finding("database", "failed", str(error), _database_cure(error))
        return
    yield Finding("database", "ok", f"answers in {(time.perf_counter() - began) * 1000:.0f} ms")
    needed = newest_version()
    if found != needed:
        newer = found is not None and found > needed
        cure = "run the newer version of this program" if newer else "esm db upgrade, as the tables' owner"
        yield Finding(
            "schema", "failed", f"the database has {found or 'none'}, this version needs {needed}", cure
        )
        return
    yield Finding("schema", "ok", f"version {found}")
    with translated(sent=False):
        connection = await asyncpg.connect(dsn(make_url(url)), timeout=CONNECT_TIMEOUT_S)
        try:
            who = await connection.fetchrow(_SQL["who_asks"], list(ROLES))
        finally:
            await connection.close()
    yield _rights(who)
    apart = abs((now() - who["moment"]).total_seconds())
    if apart > CLOCKS_DIFFER_S:
        says = f"this machine's clock and the database's are {apart:.0f} s apart"
        yield Finding("clock", "warning", says, "let both follow a time server (NTP)")
    else:
        yield Finding("clock", "ok", "this machine and the database agree")


def _database_cure(error: EventSourcingError) -> str:
    if isinstance(error, ConfigurationError):
        return "correct user, password and name in DATABASE_URL; docs/guides/roles.md, docs/guides/tls.md"
    return (
        "start it (docker-compose -f docker-compose.kafka.yml ps event-store-db shows it), "
        "or correct host and port in DATABASE_URL"
    )


def _rights(who: asyncpg.Record) -> Finding:
    name = who["name"]
    if not (who["may_append"] and who["may_record"]):
        lacks = "record progress" if who["may_append"] else "append events"
        if not who["may_read"]:
            lacks = "read events"
        cure = f"GRANT esm_writer TO {name}, if it is to work and not only to look; docs/guides/roles.md"
        return Finding("rights", "failed", f"{name} may not {lacks}", cure)
    if who["missing_roles"]:
        missing = ", ".join(who["missing_roles"])
        return Finding("rights", "warning", f"the roles {missing} do not exist", "esm db upgrade")
    what = "owns the tables" if who["owns"] else "may append and record"
    return Finding("rights", "ok", f"{name} {what}")


async def store_findings(system: System) -> AsyncIterator[Finding]:
    """Whether readers get on, whether anybody works, and what was given up."""
    storage = system.store.storage
    age = await storage.oldest_append_s()
    if age > OLD_APPEND_S:
        says = f"an append has been open for {age:.0f} s, and every reader waits behind it"
        cure = "find it in pg_stat_activity by its age; pg_terminate_backend(pid) undoes it"
        yield Finding("horizon", "warning", says, cure)
    else:
        yield Finding("horizon", "ok", f"position {await storage.horizon()}; no append holds it back")
    async with storage.lease(READ_MODELS[0].lease) as nobody:
        pass
    if nobody:
        cure = "esm worker, or docker-compose up worker; its log says why it ended"
        yield Finding("worker", "failed", "no worker runs: read models and handlers stand still", cure)
    else:
        yield Finding("worker", "ok", "a worker leads the read models")
    for lag in await lags(storage):
        yield _followed(lag)
    groups = await DeadLetterQueue(system.store).groups()
    letters = sum(group["letters"] for group in groups.values())
    if letters:
        says = f"{counted(letters, 'event')} in {', '.join(sorted(groups))} to be looked at"
        yield Finding(
            "dead letters", "warning", says, "esm dlq list; mend the handler; docs/guides/operate-the-bus.md"
        )
    else:
        yield Finding("dead letters", "ok", "none")


def _followed(lag: Lag) -> Finding:
    check = f"{lag.kind} {lag.name}"
    if lag.circuit == "open":
        says = "paused: what its handlers need is away"
        return Finding(check, "failed", says, "bring that back; the group goes on by itself")
    if lag.seconds > BEHIND_S:
        says = f"{lag.events} positions and {lag.seconds:.0f} s behind"
        cure = {
            "read-model": "is a worker running, and has its machine a core to spare?",
            "group": "es_handler_duration_seconds names the slow handler; more workers do not help one group",
            "relay": "is Kafka reachable? The relay goes on by itself when it is",
        }[lag.kind]
        return Finding(check, "failed", says, cure)
    return Finding(check, "ok", f"{counted(lag.events, 'position')} behind")


async def kafka_findings(system: System, config: EventBusConfig) -> AsyncIterator[Finding]:
    """Whether Kafka answers, has the topics as they must be, and how far behind its groups are."""
    from eventsourcing.transport.kafka_lag import kafka_lags
    from eventsourcing.transport.kafka_message import topic_of
    from eventsourcing.transport.kafka_topics import KafkaTopics

    try:
        topics = await KafkaTopics(config).partitions()
    except (UnavailableError, ConfigurationError) as error:
        cure = (
            "start it (docker-compose -f docker-compose.kafka.yml ps, … logs kafka), or correct "
            "KAFKA_BOOTSTRAP_SERVERS: kafka:29092 inside Compose, localhost:9092 outside; docs/guides/tls.md"
        )
        yield Finding("kafka", "failed", str(error), cure)
        return
    yield Finding("kafka", "ok", f"answers; {counted(len(topics), 'topic')} under {config.topic_prefix}")
    needed = {topic_of(config.topic_prefix, cls.declared_type) for cls in registered_events()}
    wrong = sorted(name for name, count in topics.items() if count != config.kafka_partitions)
    if wrong:
        says = f"{', '.join(wrong)} have another number of partitions than ESM_KAFKA_PARTITIONS"
        cure = f"set ESM_KAFKA_PARTITIONS={topics[wrong[0]]}, or move to another ESM_TOPIC_PREFIX"
        yield Finding("topics", "failed", says, cure)
    elif missing := needed - topics.keys():
        cure = "the worker makes them with ESM_KAFKA_PROVISIONING=create; else make them"
        yield Finding("topics", "warning", f"{len(missing)} are missing", cure)
    else:
        yield Finding(
            "topics", "ok", f"{len(needed)}, each with {counted(config.kafka_partitions, 'partition')}"
        )
    try:
        lags = await kafka_lags(config, system.store.storage)
    except UnavailableError as error:
        cure = "the user must be allowed to describe the topics and the groups; docs/guides/tls.md"
        yield Finding("kafka groups", "failed", str(error), cure)
        return
    for lag in lags:
        if lag.messages:
            yield Finding(
                f"group {lag.group}", "ok", f"{counted(lag.messages, 'message')} behind on {lag.topic}"
            )
