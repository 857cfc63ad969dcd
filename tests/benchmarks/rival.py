"""The PyPI library `eventsourcing` on the same server: run by itself, in an environment of its own.

It shares its import name with ours, so the two can never be installed together.
`python rival.py HOST DATABASE SINGLES BATCHED SIZE CALLERS` prints {figure: events a second} as JSON.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

PAYLOAD = json.dumps({"note": "n" * 330}).encode()


def stored() -> StoredEvent:
    return StoredEvent(originator_id=uuid4(), originator_version=1, topic="user.migrated", state=PAYLOAD)


def main(host: str, database: str, singles: int, batched: int, size: int, callers: int) -> None:
    datastore = PostgresDatastore(
        database, host=host, port=5432, user="postgres", password="", pool_size=callers, max_waiting=callers
    )
    recorder = PostgresApplicationRecorder(datastore, events_table_name="rival_events")
    recorder.create_table()
    figures: dict[str, float] = {}
    for count in (1, callers):
        with ThreadPoolExecutor(count) as pool:
            events = [stored() for _ in range(singles)]
            began = time.perf_counter()
            list(pool.map(lambda event: recorder.insert_events([event]), events))
            figures[f"one a transaction, {count} callers"] = singles / (time.perf_counter() - began)
    events = [stored() for _ in range(batched)]
    began = time.perf_counter()
    for start in range(0, batched, size):
        recorder.insert_events(events[start : start + size])
    figures["recorder"] = batched / (time.perf_counter() - began)
    application: Application = Application()
    aggregates = [Aggregate() for _ in range(batched)]
    began = time.perf_counter()
    for start in range(0, batched, size):
        application.save(*aggregates[start : start + size])
    figures["Application.save"] = batched / (time.perf_counter() - began)
    datastore.close()
    application.close()
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    os.environ.update(
        PERSISTENCE_MODULE="eventsourcing.postgres",
        POSTGRES_HOST=sys.argv[1],
        POSTGRES_DBNAME=sys.argv[2],
        POSTGRES_PORT="5432",
        POSTGRES_USER="postgres",
        POSTGRES_PASSWORD="",
    )
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
