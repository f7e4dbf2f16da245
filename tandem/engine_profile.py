"""What the steps of a loaded engine cost, measured on it."""

from __future__ import annotations

import time

from tandem.engines import Engine, Row
from tandem.slot_cache import SlotMemory
from tandem.step_cost import WIDTHS, StepCost, profile

PROFILE_CONTEXT = 192  # tokens in the cache while the cost of steps is profiled


def profile_engine(engine: Engine) -> StepCost:
    """Measure what a step costs by its number of tokens; to be called before anything is in the cache."""
    room = engine.block_size * (1 if isinstance(engine, SlotMemory) else engine.num_blocks - 1)  # for one sequence
    context = max(0, min(PROFILE_CONTEXT, room - max(WIDTHS)))
    blocks = range(min(engine.num_blocks, -(-(context + max(WIDTHS)) // engine.block_size)))

    def run(width: int) -> float:
        started = time.perf_counter()
        engine.forward([Row([0] * width, context, blocks, width, width)], width)
        return time.perf_counter() - started

    ready = max(engine.graph_widths, default=0)
    widths = [*engine.graph_widths, *(w for w in WIDTHS if ready < w <= min(room, len(blocks) * engine.block_size))]
    return profile(run, widths=widths, ready=ready)
