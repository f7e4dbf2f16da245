"""Two servers measured in turns of a quarter of a second, so that what the machine does meanwhile happens to both.

A shared machine's speed changes from one tenth of a second to the next as much as from one quarter of a minute to the
next: longer rounds do not average that away, more frequent turns do. So both are under load at once, and one of them is
stopped (SIGSTOP) while the other has the machine to itself. The times of a server's requests are told without its
pauses (perf/pauses.py); CPU time knows none.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from launcher import processes
from perf.errors import PerfError
from perf.pauses import Pause
from perf.profile import Concurrency, Profile
from perf.runner import Run
from perf.target import Target

SECONDS = 0.25
_TURNSTILE = Path(__file__).with_name("turnstile.py")
_OPEN = 2**63 - 1  # the end of a pause that has not ended


class Turns:
    """A context manager in which two groups of processes run in turns.

    Args:
        groups: their process ids.
        log: a file for the turns.
        seconds: of a turn.
    """

    def __init__(self, groups: Sequence[Sequence[int]], log: Path, seconds: float = SECONDS) -> None:
        self._groups, self._log, self._seconds = groups, log, seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        lists = [",".join(map(str, group)) for group in self._groups]
        command = [sys.executable, "-I", "-S", str(_TURNSTILE), str(self._seconds), str(self._log), *lists]
        self._log.write_bytes(b"")
        # In a session of its own, so that Ctrl-C in a terminal does not reach it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.communicate()  # closes its standard input
        for group in self._groups:  # it has done that, unless it was killed
            processes.signal_all(group, signal.SIGCONT)

    def pauses(self, group: int) -> list[Pause]:
        """Those of one group until now."""
        lines = [line.split() for line in self._log.read_text("ascii").splitlines()]
        turns = [*((int(at), int(who)) for at, who in lines), (_OPEN, -1)]
        return [(at, end) for (at, who), (end, _) in pairwise(turns) if who not in (group, -1)]


def check(profile: Profile) -> None:
    """Raise PerfError where a profile cannot be measured in turns."""
    if not isinstance(profile.load, Concurrency):
        raise PerfError(
            f"profile {profile.name} sends requests by the clock, which goes on in the pauses of measuring in turns: "
            "choose one of kind concurrency"
        )


def measure(
    program: Path, profile: Profile, new: Target, old: Target, directory: Path, advance: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a profile at two servers that were started, in turns; returns the summaries of the new and the old one.

    Args:
        program: perf_analyzer.
        profile: what to measure.
        new, old: the servers.
        directory: for the new one's run, see `runner.new_directory`; that of the old one is made in it.
        advance: is told what comes next.

    Raises:
        PerfError: perf_analyzer failed.
    """
    turns = Turns([new.pids(), old.pids()], directory / "turns.log")
    (directory / "baseline" / "raw").mkdir(parents=True)
    runs = (
        Run(program, profile, new, directory, lambda: turns.pauses(0)),
        Run(program, profile, old, directory / "baseline", lambda: turns.pauses(1)),
    )
    together(turns, [runs[0].steps(advance), runs[1].steps(lambda text: None)])
    advance("computing the figures")
    return runs[0].summary(), runs[1].summary()


def together(turns: AbstractContextManager[object], steps: Sequence[Generator[None]]) -> None:
    """Take each step of all at the same time, in turns, until the last one."""
    ended = object()
    with contextlib.ExitStack() as stack:
        for each in steps:
            stack.enter_context(contextlib.closing(each))
        pool = stack.enter_context(ThreadPoolExecutor(len(steps)))
        done: list[object] = []
        while ended not in done:
            with turns:
                waiting = [pool.submit(next, each, ended) for each in steps]
                done = [future.result() for future in waiting]
