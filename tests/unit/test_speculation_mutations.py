"""Each bug that speculation is known for, put in on purpose, must be noticed by the comparison that the tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from coordination import END, VOCAB, LocalTarget, expected_tokens, make_sequence
from guessing import GuessingDrafter, adversaries, eager

from tandem import executor as executor_module
from tandem import sampling
from tandem.decoding import DecodingLoop
from tandem.kv_cache import KvCache
from tandem.metrics import Metrics
from tandem.sampling import Choice, SamplingParams, SamplingState
from tandem.scheduler import Scheduler

Patch = Callable[[pytest.MonkeyPatch], Any]

choose = sampling.choose
truncate = KvCache.truncate


def decode_and_compare() -> None:
    """Two sequences with a drafter that is right half the time; raises where their tokens are not the target's."""
    target = LocalTarget(speculation=lambda: eager(GuessingDrafter(adversaries(VOCAB, END)["half right"])))
    loop = DecodingLoop(target, Scheduler(4, 8, 3, 2), Metrics(), 100)
    work = []
    for number in (1, 2):
        sampling_params = SamplingParams(temperature=0.9 * (number - 1), seed=number)
        sequence, sink = make_sequence(number, [number, 4], 24, sampling_params)
        sequence.drafter = "draft"
        loop._scheduler.add(sequence)
        work.append((sequence, sink))
    for _ in range(200):
        loop.cycle()
    for sequence, sink in work:
        assert sink.error is None
        assert sink.emitted.token_ids == expected_tokens(sequence)
    loop.cycle()
    assert target.executor.kv_cache.free_blocks == target.executor.kv_cache.num_blocks
    assert sum(loop._metrics.accepted) > 5
    assert sum(loop._metrics.verified) > sum(loop._metrics.accepted)


def accept_one_more(drafts: list[int], chosen: list[int]) -> int:
    return min(len(drafts), executor_module_agreement(drafts, chosen) + 1)


executor_module_agreement = executor_module.agreement


def forget_no_history(self: SamplingState, length: int) -> None:
    """Rejected drafts stay in the history."""


def keep_rejected(self: KvCache, table: Any, length: int) -> None:
    """One rejected draft stays in the cache."""
    truncate(self, table, length)
    table.length += bool(length)


def choose_one_early(logits: Any, choices: list[Choice]) -> Any:
    """Every position uses the noise and history of the one before."""
    return choose(logits, [Choice(state, max(0, position - 1)) for state, position in choices])


def share_noise(logits: Any, choices: list[Choice]) -> Any:
    """All positions of a run share the noise of its first."""
    first: dict[int, int] = {}
    return choose(logits, [Choice(state, first.setdefault(id(state), position)) for state, position in choices])


def bonus_from_first_row(logits: Any, choices: list[Choice]) -> Any:
    """The bonus token is taken from the logits of the row before."""
    shifted = logits.copy()
    for row in range(1, len(choices)):
        if choices[row - 1].state is choices[row].state:
            shifted[row] = logits[row - 1]
    return choose(shifted, choices)


MUTATIONS: dict[str, Patch] = {
    "a rejected draft is accepted": lambda p: p.setattr(executor_module, "agreement", accept_one_more),
    "all drafts are accepted": lambda p: p.setattr(executor_module, "agreement", lambda drafts, _: len(drafts)),
    "rejected drafts stay in the history": lambda p: p.setattr(SamplingState, "truncate", forget_no_history),
    "rollback is skipped": lambda p: p.setattr(KvCache, "truncate", keep_rejected),
    "positions are off by one": lambda p: p.setattr(executor_module, "choose", choose_one_early),
    "positions share their noise": lambda p: p.setattr(executor_module, "choose", share_noise),
    "the bonus token is off by one row": lambda p: p.setattr(executor_module, "choose", bonus_from_first_row),
    "blocks are not freed": lambda p: p.setattr(KvCache, "release", lambda self, table: None),
}


def test_the_comparison_holds_without_a_mutation() -> None:
    decode_and_compare()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        decode_and_compare()
