"""The run of each profile that later ones are compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from perf.errors import PerfError
from perf.runner import RUNS


def path(profile: str, runs: Path = RUNS) -> Path:
    """Where the baseline of a profile lies."""
    return runs / "baselines" / f"{profile}.json"


def store(summary: Path, profile: str, runs: Path = RUNS) -> Path:
    """Make a run's summary.json the baseline of its profile."""
    target = path(profile, runs)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(summary, target)
    return target


def read(file: Path) -> dict[str, Any]:
    """Read a summary.

    Raises:
        PerfError: it cannot be read.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PerfError(f"{file} is no summary.json of a run: {error}") from None
    return found
