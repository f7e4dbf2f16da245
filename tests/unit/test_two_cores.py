"""What a benchmark compares with: processes that stay on their core, and counts of what they did there."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from benchmarks.two_cores import KINDS, gains, on_cores


def test_a_process_stays_on_the_core_that_it_was_started_on() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        with on_cores(core):
            worker.submit(os.getpid).result()
        assert worker.submit(os.sched_getaffinity, 0).result() == {core}
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_every_kind_has_a_gain_for_each_round() -> None:
    found = gains(sorted(os.sched_getaffinity(0))[:2], rounds=2, seconds=0.02)
    assert set(found) == set(KINDS)
    assert all(len(values) == 2 and min(values) > 0 for values in found.values())
