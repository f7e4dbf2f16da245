"""CPU time of processes as the kernel counts it."""

from __future__ import annotations

import os
import time

from perf.cpu_time import CpuTime, cpu_time


def test_work_is_counted_and_sleep_is_not() -> None:
    before = cpu_time([os.getpid()])
    deadline = time.thread_time() + 0.3
    while time.thread_time() < deadline:
        pass
    worked = cpu_time([os.getpid()])
    time.sleep(0.3)
    assert worked.since(before).ran_s >= 0.29
    assert cpu_time([os.getpid()]).since(worked).ran_s < 0.2


def test_share_of_the_cores() -> None:
    assert CpuTime(3, 1).granted == 0.75
    assert CpuTime(0, 0).granted == 1
    assert CpuTime(5, 2).since(CpuTime(4, 2)) == CpuTime(1, 0)


def test_processes_that_are_gone_count_nothing() -> None:
    assert cpu_time([2**22 + 1]) == CpuTime(0, 0)
