"""Requests on an executor over a `TableEngine`, one after the other: what each finds in the prefix cache."""

from __future__ import annotations

from collections.abc import Sequence

from table_engine import table_logits

from tandem.executor import Executor
from tandem.kv_cache import Retention
from tandem.sampling import SamplingParams
from tandem.step import OpenSequence, RowStatus, StepRequest, StepResult, StepRow


def best_token(history: Sequence[int]) -> int:
    return int(table_logits(list(history), 32).argmax())


class Requests:
    """Runs one request after the other on an executor, each to its end."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.count = 100

    def run(self, prompt: Sequence[int], salt: str = "", answer: int = 1, **retention: int) -> StepResult:
        self.count += 1
        kept = Retention(**retention)  # type: ignore[arg-type]
        opened = OpenSequence(self.count, len(prompt), SamplingParams(), salt=salt, retention=kept)
        row = StepRow(self.count, 0, list(prompt), answer, limit=max(2, len(prompt)))
        result = self.executor.step(StepRequest([row], [opened], passes=answer))
        assert result.status.tolist() == [RowStatus.OK]
        history = list(prompt)
        for _ in range(answer):
            history.append(best_token(history))
        assert result.chosen.tolist() == history[len(prompt) :], "a hit changed the answer"
        self.executor.step(StepRequest(closes=[self.count], committed=[int(result.lengths[0])]))
        return result

    def cached(self, prompt: Sequence[int], salt: str = "", answer: int = 1, **retention: int) -> int:
        return int(self.run(prompt, salt, answer, **retention).cached[0])


def check_skipping(executor: Executor, prompt: Sequence[int]) -> None:
    """A request that skips the cache neither finds nor leaves anything, and takes nothing away."""
    requests, cache = Requests(executor), executor.kv_cache
    requests.run(prompt, answer=8, skipped=True)
    assert (cache.cached_blocks, cache.queried_tokens) == (0, 0)
    requests.run(prompt, answer=8)
    kept, free = cache.cached_blocks, cache.free_blocks
    assert kept > 0
    assert requests.cached(prompt, skipped=True) == 0
    assert (cache.cached_blocks, cache.free_blocks) == (kept, free)
    assert requests.cached(prompt) == len(prompt) - 2, "what was kept is still there"
