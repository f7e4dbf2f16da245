"""Measuring two servers in turns: which runs when, and that none stays stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from perf import profile, turns
from perf.errors import PerfError


def steps(name: str, log: list[str], count: int = 2, fails_at: int = -1) -> Generator[None]:
    try:
        for number in range(count):
            if number == fails_at:
                raise PerfError("perf_analyzer ended")
            log.append(f"{name}{number}")
            yield
    finally:
        log.append(f"{name} closed")


class Logged(contextlib.AbstractContextManager[object]):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> None:
        self.log.append("turns")

    def __exit__(self, *about: object) -> None:
        self.log.append("both")


def test_each_step_is_taken_by_both_in_turns_of_its_own() -> None:
    log: list[str] = []
    turns.together(Logged(log), [steps("a", log), steps("b", log)])
    pairs = [["turns", "a0", "b0", "both"], ["turns", "a1", "b1", "both"], ["turns", "a closed", "b closed", "both"]]
    assert [sorted(log[start : start + 4]) for start in range(0, 12, 4)] == [sorted(pair) for pair in pairs]
    assert [log[place] for place in (0, 3, 4, 7, 8, 11)] == ["turns", "both"] * 3


def test_where_one_fails_the_other_ends_its_step_and_is_closed() -> None:
    log: list[str] = []
    with pytest.raises(PerfError):
        turns.together(Logged(log), [steps("a", log), steps("b", log, fails_at=1)])
    assert log.count("a closed") == log.count("b closed") == 1
    assert "a1" in log


@pytest.fixture
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that do nothing else than run."""
    found = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(2)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def state(process: subprocess.Popen[bytes]) -> str:
    return str(psutil.Process(process.pid).status())


def test_only_one_of_two_groups_runs_at_a_time(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    both = turns.Turns([[process.pid] for process in busy], tmp_path / "log", 0.02)
    seen = set()
    started = time.time_ns()
    with both:
        while len(both.pauses(0)) < 5 or len(both.pauses(1)) < 5:
            seen.add(tuple(state(process) == psutil.STATUS_STOPPED for process in busy))
    assert {(True, False), (False, True)} <= seen
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2
    ended = time.time_ns()
    pauses = sorted(both.pauses(0) + both.pauses(1))
    assert all(started < begin < end < ended for begin, end in pauses)
    assert all(first[1] == second[0] for first, second in pairwise(pauses)), "one pauses when the other's pause ends"


def test_the_last_pause_is_open_until_it_ends(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("100 0\n200 1\n300 0\n")
    open_end = turns.Turns([[], []], tmp_path / "log")
    assert open_end.pauses(0) == [(200, 300)]
    assert open_end.pauses(1)[0] == (100, 200)
    assert open_end.pauses(1)[1][1] > time.time_ns()


def test_a_killed_parent_leaves_nothing_stopped(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    pids = [[process.pid] for process in busy]
    code = (
        "import os, pathlib, signal, time; from perf.turns import Turns\n"
        f"with Turns({pids}, pathlib.Path({str(tmp_path / 'log')!r}), 0.02):\n"
        "    time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").read_text().endswith(" -1\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "log").read_text().count("\n") > 5, "they took turns before"
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2


def test_a_killed_turnstile_leaves_nothing_stopped(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    with turns.Turns([[process.pid] for process in busy], tmp_path / "log", 60) as both:
        while not both.pauses(1):
            time.sleep(0.01)
        time.sleep(0.1)
        assert [state(process) for process in busy] == [psutil.STATUS_RUNNING, psutil.STATUS_STOPPED]
        assert both._process is not None
        both._process.kill()
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2


@pytest.mark.parametrize("name", ["poisson", "bursts"])
def test_loads_by_the_clock_are_not_measured_in_turns(name: str) -> None:
    with pytest.raises(PerfError, match="by the clock"):
        turns.check(profile.load(name))
