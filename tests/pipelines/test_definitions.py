"""What Dagster loads of us."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import dagster as dg
import yaml

from pipelines.definitions import defs
from resources.dagster_home import LOCATION

ROOT = Path(__file__).parents[2]


def test_definitions_load_in_a_fresh_interpreter() -> None:
    code = (
        "import dagster as dg; from pipelines.definitions import defs; dg.Definitions.validate_loadable(defs)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_job_runs_in_one_process() -> None:
    for job in defs.resolve_all_job_defs():
        if not job.name.startswith("__"):
            assert job.executor_def.name == "in_process"


def test_sensors_and_schedules_run_unless_switched_off() -> None:
    repository = defs.get_repository_def()
    assert {s.default_status for s in repository.sensor_defs} == {dg.DefaultSensorStatus.RUNNING}
    assert {s.default_status for s in repository.schedule_defs} == {dg.DefaultScheduleStatus.RUNNING}


def test_the_workspace_names_the_location_that_embedded_runs_name() -> None:
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"]["location_name"] == LOCATION


def test_the_configuration_of_dagster_is_package_data() -> None:
    config = yaml.safe_load(files("resources").joinpath("dagster.yaml").read_text())
    assert config["telemetry"] == {"enabled": False}
