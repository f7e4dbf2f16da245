"""Times without the pauses in which a server was stopped, see perf/turns.py; they are kept beside the export."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

Pause = tuple[int, int]  # beginning and end, nanoseconds since 1970


class ActiveTime:
    """Takes pauses out of times: what happens in a pause happens when it begins.

    Args:
        pauses: in their order, without overlaps.
    """

    def __init__(self, pauses: Sequence[Pause]) -> None:
        self._begins = [begin for begin, _ in pauses]
        self._lengths = [end - begin for begin, end in pauses]
        self._before = [0]
        for length in self._lengths:
            self._before.append(self._before[-1] + length)

    def at(self, time_ns: int) -> int:
        """A time, less what was paused until then."""
        count = bisect_right(self._begins, time_ns)
        if not count:
            return time_ns
        return time_ns - self._before[count - 1] - min(time_ns - self._begins[count - 1], self._lengths[count - 1])


def path(export: Path) -> Path:
    """Where the pauses of a measurement are."""
    return export.with_suffix(".pauses.json")


def store(export: Path, pauses: Sequence[Pause]) -> None:
    """Write them beside the export."""
    path(export).write_text(json.dumps(pauses), encoding="utf-8")


def load(export: Path) -> ActiveTime:
    """Of an export without pauses too.

    Raises:
        ValueError: the file is not one of `store`.
        OSError: it cannot be read.
    """
    file = path(export)
    return ActiveTime(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else [])
