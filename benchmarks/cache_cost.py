"""What the prefix cache costs where nothing is shared: seconds of the executor with it and without it, on one engine.

Two servers, one of each kind, may differ by themselves for as long as they run. One engine in this process serves both
kinds in turns, and the seconds within the cache are counted as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tandem.engines import Engine
from tandem.executor import Executor
from tandem.sampling import SamplingParams
from tandem.sequence_cache import SequenceCache, cache_of
from tandem.step import OpenSequence, StepRequest, StepRow


class _TimedCache:
    """A `SequenceCache` that counts the seconds spent in its methods."""

    def __init__(self, cache: SequenceCache) -> None:
        self._cache = cache
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cache, name)
        return self._timed(value) if callable(value) else value

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def _answer(executor: Executor, prompts: Sequence[list[int]], tokens: int, first: int) -> None:
    """One answer of `tokens` for each prompt, all in one batch; nothing of a prompt may be found."""
    params = SamplingParams()
    ids = range(first, first + len(prompts))
    opens = [OpenSequence(i, len(prompt), params) for i, prompt in zip(ids, prompts, strict=True)]
    rows = [StepRow(i, 0, prompt, 1, len(prompt)) for i, prompt in zip(ids, prompts, strict=True)]
    result = executor.step(StepRequest(rows, opens))
    assert not result.cached.any(), "prompts of this benchmark share nothing"
    for place in range(1, tokens):
        rows = [
            StepRow(i, len(prompt) + place - 1, [token], 1)
            for i, prompt, token in zip(ids, prompts, result.chosen.tolist(), strict=True)
        ]
        result = executor.step(StepRequest(rows))
    executor.step(StepRequest(closes=list(ids), committed=[len(prompt) + tokens - 1 for prompt in prompts]))


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch of requests, answered without reuse and with it; seconds."""

    without: float
    with_cache: float
    within_without: float  # of those, in the methods of the cache: blocks have to be handed out in any case
    within_with: float


def turns(engine: Engine, batches: Sequence[Sequence[list[int]]], tokens: int) -> list[Turn]:
    """Answer each batch both ways; which is first takes turns.

    Args:
        engine: whose pool should be so small that later batches take their blocks from those that are kept.
        batches: of prompts, in token ids; none begins like another.
        tokens: of each answer.
    """
    caches = [_TimedCache(cache_of(engine, reuse=reuse)) for reuse in (False, True)]
    executors = [Executor(engine, 1, kv_cache=cast("SequenceCache", cache)) for cache in caches]
    found = []
    for number, prompts in enumerate(batches):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            caches[which].seconds, started = 0.0, time.perf_counter()
            _answer(executors[which], prompts, tokens, number * len(prompts))
            seconds[which] = time.perf_counter() - started
        found.append(Turn(seconds[0], seconds[1], caches[0].seconds, caches[1].seconds))
    assert caches[1].evicted_blocks > 0, "the pool was never full"
    return found
