"""What the prefix cache costs where nothing is shared: seconds of an executor for requests that skip it, and for those
that use it.

Both are answered at the same time, a step of the ones and a step of the others in turns: the machine is faster in one
second than in the next, and two processes differ for as long as they run. Seconds within the cache are counted too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tandem.engines import Engine
from tandem.executor import Executor
from tandem.kv_cache import Retention
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


class _Batch:
    """Requests that are answered together, nothing of whose prompts may be found."""

    def __init__(self, executor: Executor, prompts: Sequence[list[int]], first: int, skips: bool) -> None:
        self._executor, self._prompts, self._skips = executor, prompts, skips
        self._ids = range(first, first + len(prompts))
        self._chosen: list[int] = []
        self._past = 0  # tokens of each answer

    def step(self) -> None:
        """Read the prompts, or go on with the answers."""
        rows, opens = [], []
        for place, (number, prompt) in enumerate(zip(self._ids, self._prompts, strict=True)):
            if self._past:
                rows.append(StepRow(number, len(prompt) + self._past - 1, [self._chosen[place]], 1))
            else:
                rows.append(StepRow(number, 0, prompt, 1, len(prompt)))
                kept = Retention(skipped=self._skips)
                opens.append(OpenSequence(number, len(prompt), SamplingParams(), retention=kept))
        result = self._executor.step(StepRequest(rows, opens))
        assert not result.cached.any(), "prompts of this benchmark share nothing"
        self._chosen, self._past = result.chosen.tolist(), self._past + 1

    def close(self) -> None:
        committed = [len(prompt) + self._past - 1 for prompt in self._prompts]
        self._executor.step(StepRequest(closes=list(self._ids), committed=committed))


@dataclass(frozen=True, slots=True)
class Turn:
    """Two batches of requests, one that skips the cache and one that uses it; seconds."""

    without: float
    with_cache: float
    within_without: float  # of those, in the methods of the cache: blocks have to be handed out in any case
    within_with: float


def turns(engine: Engine, batches: Sequence[Sequence[list[int]]], tokens: int) -> list[Turn]:
    """Answer the batches two by two; which of them skips the cache, and which steps first, takes turns.

    Args:
        engine: whose pool should be so small that later batches take their blocks from those that are kept.
        batches: of prompts of equal length, in token ids; none begins like another.
        tokens: of each answer.
    """
    cache = _TimedCache(cache_of(engine))
    executor = Executor(engine, 1, kv_cache=cast("SequenceCache", cache))
    found = []
    for number, pair in enumerate(zip(batches[::2], batches[1::2], strict=True)):
        first = 2 * number * len(pair[0])
        order = (True, False) if number % 2 else (False, True)
        ways = {
            skips: _Batch(executor, prompts, first + place * len(prompts), skips)
            for place, (skips, prompts) in enumerate(zip(order, pair, strict=True))
        }
        seconds, within = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0)
        for at in range(tokens + 1):
            for skips in order if at % 2 else order[::-1]:
                cache.seconds, started = 0.0, time.perf_counter()
                if at < tokens:
                    ways[skips].step()
                else:
                    ways[skips].close()
                seconds[skips] += time.perf_counter() - started
                within[skips] += cache.seconds
        found.append(Turn(seconds[True], seconds[False], within[True], within[False]))
    assert cache.evicted_blocks > 0, "the pool was never full"
    return found
