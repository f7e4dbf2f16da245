"""What the prefix cache costs where nothing is shared: the seconds within it, of those of the steps around it.

Tokens/s with the cache and without it differ by less than a shared machine's noise. What the cache adds to a step is a
few Python calls, and those can be timed alone: the executor of `target` on the real engine, in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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


def shares(engine: Engine, batches: Sequence[Sequence[list[int]]], tokens: int) -> list[tuple[float, float]]:
    """The share of the time that is spent in the cache, in turns without reuse and with it.

    Args:
        engine: whose pool should be small, so that each batch takes its blocks from those that are kept.
        batches: of prompts, in token ids; none begins like another.
        tokens: of each answer.

    Returns:
        For each batch the share without reuse, and with it.
    """
    caches = [_TimedCache(cache_of(engine, reuse=reuse)) for reuse in (False, True)]
    executors = [Executor(engine, 1, kv_cache=cast("SequenceCache", cache)) for cache in caches]
    found = []
    for number, prompts in enumerate(batches):
        of_both = []
        for cache, executor in zip(caches, executors, strict=True):
            cache.seconds, started = 0.0, time.perf_counter()
            _answer(executor, prompts, tokens, number * len(prompts))
            of_both.append(cache.seconds / (time.perf_counter() - started))
        found.append((of_both[0], of_both[1]))
    assert caches[1].evicted_blocks > 0, "the pool was never full"
    return found
