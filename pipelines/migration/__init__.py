"""The migration engine: a mapping file, a source and a target in; a proven target and its events out."""

import pipelines.migration.panel_functions  # noqa: F401 - registers the functions of the demo
from pipelines.migration.context import Progress
from pipelines.migration.errors import (
    Flaw,
    MappingError,
    MigrationError,
    RecordRefusedError,
    RunStoppedError,
    SchemaIncompatibleError,
    SourceError,
    StagedDataError,
    StageOrderError,
    TargetBusyError,
    TargetError,
    TargetLockedError,
    TargetNotEmptyError,
    ThresholdExceededError,
    UnknownRunError,
    VerificationError,
    WorkFolderError,
)
from pipelines.migration.manifest import StageOutcome
from pipelines.migration.mapping import Mapping, mapping_schema
from pipelines.migration.mappingfile import load_mapping, parse_mapping
from pipelines.migration.run import Migration
from pipelines.migration.transforms import (
    Conversion,
    Settings,
    register_child_function,
    register_function,
)

__all__ = [
    "Conversion",
    "Flaw",
    "Mapping",
    "MappingError",
    "Migration",
    "MigrationError",
    "Progress",
    "RecordRefusedError",
    "RunStoppedError",
    "SchemaIncompatibleError",
    "Settings",
    "SourceError",
    "StageOrderError",
    "StageOutcome",
    "StagedDataError",
    "TargetBusyError",
    "TargetError",
    "TargetLockedError",
    "TargetNotEmptyError",
    "ThresholdExceededError",
    "UnknownRunError",
    "VerificationError",
    "WorkFolderError",
    "load_mapping",
    "mapping_schema",
    "parse_mapping",
    "register_child_function",
    "register_function",
]
