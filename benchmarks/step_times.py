"""What a step of the bare engine costs by its width: T(m), one sequence with m new tokens, as in verifying drafts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.engines import EngineOptions, Row, load_engine
from tandem.settings import TargetSettings

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
CONTEXT = 192  # tokens in the cache
ROUNDS = 15
KV_CACHE_MB = 64


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of steps by width; where the engine has no graph for it, another width than the last one costs more."""

    steady: dict[int, list[float]]  # the step before had the same width
    changed: dict[int, list[float]]  # it had another


def step_times(directory: Path, widths: Sequence[int] = WIDTHS, rounds: int = ROUNDS) -> StepTimes:
    """Steps of each width in turn, after a round that warms up."""
    options = EngineOptions(kv_cache_mb=KV_CACHE_MB, graph_memory_mb=TargetSettings().graph_memory_mb)
    engine = load_engine(directory, options)
    blocks = range(-(-(CONTEXT + max(widths)) // engine.block_size))

    def run(width: int) -> float:
        started = time.perf_counter()
        engine.forward([Row([5] * width, CONTEXT, blocks, width, width)])
        return time.perf_counter() - started

    times = StepTimes({width: [] for width in widths}, {width: [] for width in widths})
    for number in range(rounds + 1):
        for width in (*widths[::2], *widths[1::2]):  # not 2 after 1, which the engine fills up to 2 as well
            changed, steady = run(width), run(width)
            if number:
                times.changed[width].append(changed)
                times.steady[width].append(steady)
    return times
