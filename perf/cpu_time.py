"""CPU time of processes: what their threads used, and what they waited for while others had the cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds, summed over threads, as Linux counts them (/proc/PID/task/TID/schedstat)."""

    ran_s: float
    waited_s: float  # ready to run, without a core

    def since(self, before: CpuTime) -> CpuTime:
        """What came on top; threads that ended meanwhile are missing."""
        return CpuTime(max(0.0, self.ran_s - before.ran_s), max(0.0, self.waited_s - before.waited_s))

    @property
    def granted(self) -> float:
        """Share of the time in which the threads wanted to run that they did: 1 where nobody else wants the cores."""
        wanted = self.ran_s + self.waited_s
        return self.ran_s / wanted if wanted else 1.0


def cpu_time(pids: Iterable[int]) -> CpuTime:
    """Of these processes together; those that are gone count nothing."""
    ran = waited = 0
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, ValueError):
                used, waiting, _ = file.read_text().split()
                ran, waited = ran + int(used), waited + int(waiting)
    return CpuTime(ran / 1e9, waited / 1e9)
