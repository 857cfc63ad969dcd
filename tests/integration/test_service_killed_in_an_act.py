"""`kill -9` of an Event Service in the middle of an act, over real Dagster runs: the repeat ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import httpx2
import pytest

from api.launcher import REQUEST
from eventsourcing import EventStore, Settings
from eventsourcing.storage.embedded import EmbeddedPostgres
from eventsourcing.storage.postgres import PostgresStorage
from eventsourcing.testing import a_migration
from resources.dagster_home import opened_instance
from tests.api.service_process import ServiceProcess
from tests.integration.launching import launcher_settings
