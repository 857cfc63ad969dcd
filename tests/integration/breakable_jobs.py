"""The jobs, in processes that end as they begin while a file is there which the environment names."""

import os
from pathlib import Path

from pipelines.definitions import defs

__all__ = ["defs"]

if Path(os.environ["BROKEN_LANES"]).exists():
    os._exit(3)  # as a process ends that the kernel kills
