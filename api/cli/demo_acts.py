"""The acts of the demo: plan, run until the kill, resume, prove, undo, run again. Each is a Dagster job."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from rich.text import Text
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from api.cli.demo_data import DemoData
from api.cli.demo_traps import traps
from api.cli.demo_watch import Watch
from api.cli.migrate_screen import accounting, difference_table
from api.cli.screen import console, pairs, table
from api.embedded_launcher import EmbeddedLauncher
from eventsourcing.bootstrap import System
from eventsourcing.catalogue import MIGRATION_SEQUENCE
from eventsourcing.errors import UnavailableError
from eventsourcing.events import EventType
from eventsourcing.quarantine import quarantined
from eventsourcing.query import EventQuery
from eventsourcing.readmodels import MIGRATION_STATISTICS_MODEL, READ_MODELS
from eventsourcing.replays import ReplayJournal, ReplayRequest
from pipelines.migration.legacy_panel import TARGET_TABLES
from pipelines.migration.report_page import verdict
from resources.migration_journal import MigrationJournal
from resources.results import JobResults

KILLED_AT = 0.4
JOB_TIMEOUT_S = 600
"""How long one job of the demo may take."""

SHOWN_STATISTICS = (
    "status",
    "extracted_count",
    "transformed_count",
    "validated_count",
    "imported_count",
    "user_count",
    "admin_count",
    "duration_seconds",
)


@dataclass(frozen=True)
class Stage:
    """Where the acts play."""

    system: System
    launcher: EmbeddedLauncher
    data: DemoData

    @property
    def journal(self) -> MigrationJournal:
        """The rows of all migrations."""
        return MigrationJournal(self.system.store.storage)

    async def plan(self, migration_id: str) -> bool:
        """Say what a run would do; it is held against what was planted."""
        plan_id = f"{migration_id}-plan"
        config = {"ops": {"preview": {"config": self.data.config(plan_id)}}}
        await self._job("plan_migration", config, plan_id)
        facts = (await self.journal.get(plan_id) or {})["preview"]
        console.print(accounting(facts["entities"]))
        counts = facts["entities"]["users"]
        expected = sum(count for name, count in self.data.planted.items() if name != "bad_bcrypt")
        rows = self._rows()
        found = (counts["quarantined"], counts["filtered"], sum(rows.values()))
        good = bool(facts["ok"]) and found == (expected, self.data.removed, 0)
        console.print(f"{tick(good)} planned, and nothing is written: {_said(rows)}")
        return good

    async def run_and_kill(self, migration_id: str, watch: Watch) -> bool:
        """Run the `migrate` job, and kill its process with SIGKILL when 40 % of the records are there."""
        run_id = await self._submit("migrate", self.data.config(migration_id), migration_id)
        watching = asyncio.create_task(watch.until(KILLED_AT))
        over = asyncio.create_task(self.launcher.wait(run_id, JOB_TIMEOUT_S))
        await asyncio.wait({watching, over}, return_when=asyncio.FIRST_COMPLETED)
        if not watching.done():
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            raise UnavailableError(await self._why_failed(migration_id) + f" (Dagster run {run_id})")
        lane = next(lane for lane in self.launcher.lanes if lane.running == run_id)
        assert lane.pid is not None, "what runs has a process"
        os.kill(lane.pid, signal.SIGKILL)
        done, total = watching.result()
        await over
        row = await self.journal.get(migration_id) or {}
        good = bool(row["status"] == "interrupted")
        share = 100 * done / max(total, 1)
        console.print(
            f"{tick(good)} [bold]kill -9[/bold] at {share:.0f} %: the migration is {row['status']}, "
            f"{_said(self._rows())}"
        )
        return good

    async def resume(self, migration_id: str, watch: Watch) -> None:
        """Run the job again under the same id: it goes on at the first chunk that is not done."""
        run_id = await self._submit("migrate", self.data.config(migration_id), migration_id)
        watching = asyncio.create_task(watch.until(1))
        if not await self.launcher.wait(run_id, JOB_TIMEOUT_S):
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            raise UnavailableError(await self._why_failed(migration_id) + f" (Dagster run {run_id})")
        await watching

    async def show_statistics(self, migration_id: str) -> bool:
        """What the read model counts."""
        for model in READ_MODELS:
            await model.catch_up(self.system.store.storage)
        stats = await MIGRATION_STATISTICS_MODEL.stats(self.system.store.storage, migration_id)
        shown = {name: stats[name] for name in SHOWN_STATISTICS}
        console.print(pairs("Statistics, from the read model", shown))
        return bool(stats["status"] == "completed")

    async def show_quarantine(self, migration_id: str) -> bool:
        """Compare what was set aside, and why, with what was planted."""
        page = await quarantined(self.system.store, migration_id, limit=1_000_000)
        actual: dict[str, int] = {}
        for row in page.rows:
            name = self.data.defect_of(row)
            actual[name] = actual.get(name, 0) + 1
        planted = self.data.planted
        rows = [
            (name, planted.get(name, 0), actual.get(name, 0), _cell(planted.get(name) == actual.get(name)))
            for name in sorted({*planted, *actual})
        ]
        console.print(table("Planted defects, set aside", ("defect", "expected", "actual", ""), rows))
        return planted == actual

    async def show_traps(self, migration_id: str) -> bool:
        """Compare the target with what the two systems' own rules make of the source."""
        started = (await self.system.store.get_events(migration_id))[0]
        found = await asyncio.to_thread(traps, self.data, started.timestamp)
        rows = [(what, expected, actual, _cell(expected == actual)) for what, expected, actual in found]
        console.print(table("The traps of this pair", ("trap", "expected", "actual", ""), rows))
        return all(expected == actual for _, expected, actual in found)

    async def verify(self, migration_id: str) -> bool:
        """Compare every row of the target, the events and the credentials, by the `verify_migration` job."""
        config = {"ops": {"verify_target": {"config": {"migration_id": migration_id}}}}
        await self._job("verify_migration", config, migration_id, may_fail=True)
        facts = (await self.journal.report(migration_id) or {})["facts"]
        verified = facts["verification"]
        if verified["differences"]:
            console.print(difference_table(verified["differences"]))
        rows = sum(found["matched"] for found in verified["tables"].values())
        told = sum(part["matched"] for parts in verified["events"].values() for part in parts.values())
        checked = sum(item["checked"] or 0 for item in verified["invariants"].values())
        console.print(
            f"{tick(verified['ok'])} verified: {rows:,} rows hashed and equal, {told:,} equal to what the "
            f"events tell, credentials of {checked:,} users derived anew: [bold]{verdict(facts)[0]}[/bold]"
        )
        return bool(verified["ok"])

    async def rollback(self, migration_id: str) -> bool:
        """Undo it row by row, and look whether the target is as it was: empty."""
        config = {"migration_id": migration_id, "reason": "a demonstration"}
        await self._job("rollback", {"ops": {"roll_back": {"config": config}}}, migration_id)
        row = await self.journal.get(migration_id) or {}
        console.print(
            f"{tick(row['status'] == 'rolled_back')} rolled back: {_counted(row['rollback']['deleted'])}"
        )
        facts = (await self.journal.report(migration_id) or {})["facts"]
        rows = self._rows()
        empty = not sum(rows.values()) and facts["rolled_back"]["ok"]
        console.print(f"{tick(empty)} verified empty: {_said(rows)}")
        return bool(empty)

    async def run_again(self, migration_id: str) -> bool:
        """Run the whole migration once more under a new id, undisturbed."""
        before = await self.system.store.horizon()
        await self.resume(migration_id, Watch(self.system.store, migration_id, after=before))
        row = await self.journal.get(migration_id) or {}
        good = bool(row["status"] == "completed")
        console.print(f"{tick(good)} run again: {_said(self._rows())}")
        return good

    async def validate(self, migration_id: str) -> bool:
        """The sequence of the migration's own events."""
        expected = [str(event_type) for event_type in MIGRATION_SEQUENCE]
        config = {"aggregate_id": migration_id, "expected_sequence": expected}
        result = await self._ask("validate_sequence", "validate_sequence", config)
        valid = bool(result["is_valid"])
        console.print(f"{tick(valid)} sequence: {' → '.join(result['actual_sequence'])}")
        return valid

    async def snapshot(self, migration_id: str) -> bool:
        """A snapshot, whose state is the live read model's."""
        result = await self._ask("snapshot", "create_snapshot", {"aggregate_id": migration_id})
        live = await MIGRATION_STATISTICS_MODEL.stats(self.system.store.storage, migration_id)
        same = bool(result["state"] == live)
        console.print(
            f"{tick(same)} snapshot at version {result['version']}, position {result['position']:,}: its "
            f"state {result['state_hash'][:12]} equals the live read model"
        )
        return same

    async def replay(self, migration_id: str) -> bool:
        """Replay twice into states of their own: both must come to the same state."""
        rows = []
        journal = ReplayJournal(self.system.store.storage)
        for _ in range(2):
            replay_id = await journal.create(ReplayRequest(replay_type="all", batch_size=1000))
            config = {"ops": {"replay_events": {"config": {"replay_id": replay_id}}}}
            await self._job("replay", config, migration_id)
            row = await journal.get(replay_id)
            assert row is not None, "the journal keeps every replay"
            rows.append(row)
        same = rows[0]["state_hashes"] == rows[1]["state_hashes"] and not rows[0]["failed_events"]
        events, rate = rows[0]["processed_events"], rows[0]["rate"]
        console.print(f"{tick(same)} replay of {events:,} events ({rate:,.0f}/s), twice: the same state")
        return bool(same)

    def _rows(self) -> dict[str, int]:
        engine = create_engine(self.data.target_url, poolclass=NullPool)
        with engine.connect() as connection:
            return {
                name: int(connection.scalar(text(f"SELECT count(*) FROM {name}")) or 0)  # noqa: S608 - ours
                for name in TARGET_TABLES
            }

    async def _ask(self, job: str, op: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Run a job that answers with a result row."""
        result_id = uuid4().hex
        given = {"ops": {op: {"config": {**config, "result_id": result_id}}}}
        await self._job(job, given, config["aggregate_id"])
        answer = await JobResults(self.system.store.storage).get(result_id)
        assert answer is not None, "a job that succeeded left its result"
        return dict(answer["result"])

    async def _job(
        self, job: str, config: dict[str, Any], migration_id: str, *, may_fail: bool = False
    ) -> None:
        run_id = await self._submit(job, config, migration_id)
        if not await self.launcher.wait(run_id, JOB_TIMEOUT_S) and not may_fail:
            raise UnavailableError(f"the job {job} failed (Dagster run {run_id})")

    async def _submit(self, job: str, config: dict[str, Any], migration_id: str) -> str:
        return await self.launcher.submit(job, config, {"migration_id": migration_id, "source": "demo"})

    async def _why_failed(self, migration_id: str) -> str:
        query = EventQuery(aggregate_id=migration_id, event_types=(EventType.MIGRATION_FAILED,))
        async for event in self.system.store.read(query):
            return f"the migration failed: {event.data['error_message']}"
        return "the migration failed before it could say why"


def _cell(good: bool) -> Text:
    return Text.from_markup(tick(good))


def tick(good: bool) -> str:
    """A mark for the eye."""
    return "[green]✓[/green]" if good else "[red]✗[/red]"


def _said(rows: dict[str, int]) -> str:
    return _counted(rows) + " in the target"


def _counted(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in rows.items())
