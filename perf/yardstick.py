"""How fast the machine is at this moment, told by arithmetic that no change of the product can touch.

Shared machines drift by 20 % and more from one minute to the next. A run measures this before and after each of its
measurements, so that two runs can be compared by what they did per unit of what the machine could do.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

_RNG = np.random.default_rng(0)
# As in decoding: a product that reads 32 MB of weights from memory for few rows, and one that stays in the caches.
_WEIGHTS = _RNG.standard_normal((2048, 4096), dtype=np.float32)
_ROWS = _RNG.standard_normal((4096, 4), dtype=np.float32)
_SQUARE = _RNG.standard_normal((384, 384), dtype=np.float32)
REPEATS = 9


class Speed(NamedTuple):
    """Work per second of the clock, and per second of CPU time, in units without meaning."""

    wall: float
    cpu: float


def speed() -> Speed:
    """The medians of some repeats that take under half a second together."""
    wall, cpu = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        for _ in range(2):
            _WEIGHTS @ _ROWS
            _SQUARE @ _SQUARE
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    return Speed(1 / float(np.median(wall)), 1 / float(np.median(cpu)))
