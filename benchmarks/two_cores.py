"""What this machine itself gains from a second core: the bound of whatever runs on both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

import numpy as np

SECONDS = 2.0


@contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """What is started here runs on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def multiply(seconds: float) -> float:
    """Products a second of two matrices that fit into a core's own cache."""
    square = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
    return _per_second(lambda: square @ square, seconds)


def read_memory(seconds: float) -> float:
    """Readings a second of 80 MB."""
    values = np.ones(20_000_000, np.float32)
    return _per_second(lambda: values.max(), seconds)


def _per_second(work: Callable[[], object], seconds: float) -> float:
    work()
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        work()
        count += 1
    return count / passed


KINDS = {"arithmetic": multiply, "reading memory": read_memory}


def gains(cores: Sequence[int], rounds: int, seconds: float = SECONDS) -> dict[str, list[float]]:
    """For each of `KINDS` and each round: how much both cores do together, as a multiple of what one does alone."""
    with ExitStack() as stack:
        workers = []
        for core in cores:
            # A process starts with its first task, on the cores of the thread that submits it.
            worker = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
            with on_cores(core):
                worker.submit(multiply, 0.1).result()
            workers.append(worker)
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(rounds):
            for kind, work in KINDS.items():
                alone = workers[number % len(workers)].submit(work, seconds).result()
                both = [worker.submit(work, seconds) for worker in workers]
                found[kind].append(sum(future.result() for future in both) / alone)
    return found
