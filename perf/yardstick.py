"""How fast the machine is at this moment, told by arithmetic that no change of the product can touch.

Shared machines drift by 20 % and more from one minute to the next. A run measures this before and after each of its
measurements, so that two runs can be compared by what they did per unit of what the machine could do.
"""

from __future__ import annotations

import time

import numpy as np

_RNG = np.random.default_rng(0)
# As in decoding: a product that reads 32 MB of weights from memory for few rows, and one that stays in the caches.
_WEIGHTS = _RNG.standard_normal((2048, 4096), dtype=np.float32)
_ROWS = _RNG.standard_normal((4096, 4), dtype=np.float32)
_SQUARE = _RNG.standard_normal((384, 384), dtype=np.float32)
REPEATS = 9


def speed() -> float:
    """Work per second, in units without meaning: the median of some repeats that take under half a second together."""
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(2):
            _WEIGHTS @ _ROWS
            _SQUARE @ _SQUARE
        seconds.append(time.perf_counter() - started)
    return 1 / float(np.median(seconds))
