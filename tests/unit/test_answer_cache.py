"""Whole answers that are kept: equal requests get them, others do not, and the cache is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coordination import Collector, LocalTarget, letters_coordinator

from tandem.answer_cache import ENTRY_BYTES, AnswerCache
from tandem.coordinator import Coordinator
from tandem.sequence import Emission, Sequence
from tandem.step import StepRequest

WAIT_S = 90  # in a fresh clone the sampler is compiled first


@pytest.fixture
def target() -> LocalTarget:
    return LocalTarget()


@pytest.fixture
def coordinator(target: LocalTarget, tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = letters_coordinator(tmp_path, [target], answer_cache_mb=1)
    coordinator.start()
    yield coordinator
    coordinator.stop()


def ask(coordinator: Coordinator, **fields: Any) -> tuple[Sequence, Emission]:
    sent = {"text_input": b"ABCD", "max_tokens": 6, **fields}
    tensors = {name: value if isinstance(value, list) else [value] for name, value in sent.items()}
    request = coordinator.parse(tensors)
    sink = Collector()
    sequence, _ = coordinator.prepare(request, sink)
    coordinator.submit(request, sequence)
    assert sink.ended.wait(WAIT_S)
    assert sink.error is None
    return sequence, sink.emitted


SAMPLED = {"temperature": 1.0, "random_seed": 7}


@pytest.mark.parametrize("fields", [{}, SAMPLED, {"return_log_probs": True}, {"stop_words": [b"Q"]}])
def test_an_equal_request_gets_the_kept_answer(coordinator: Coordinator, target: LocalTarget, fields: Any) -> None:
    first, wanted = ask(coordinator, **fields)
    steps = len(target.requests)
    again, found = ask(coordinator, **fields)
    assert found == wanted
    assert again.generated == first.generated
    assert again.reused == len(again.prompt)
    assert (coordinator.answers.hits, coordinator.answers.misses) == (1, 1)
    assert coordinator.read_metrics().outcomes["success"] == 2
    rows = [row for request in target.requests[steps:] for row in request.rows]
    assert not rows, "it was computed again"


CHANGES: dict[str, Any] = {
    "text_input": b"ABCE",
    "max_tokens": 5,
    "min_length": 2,
    "temperature": 0.9,
    "random_seed": 8,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "stop_words": [b"Z"],
    "bad_words": [b"Z"],
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "return_log_probs": True,
    "cache_salt": b"other",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_determines_the_answer_tells_requests_apart(coordinator: Coordinator, name: str) -> None:
    ask(coordinator, **SAMPLED)
    ask(coordinator, **{**SAMPLED, name: CHANGES[name]})
    assert coordinator.answers.hits == 0
    ask(coordinator, **SAMPLED)
    assert coordinator.answers.hits == 1, "the first answer is not there"


def test_what_does_not_determine_the_answer_does_not(coordinator: Coordinator) -> None:
    ask(coordinator, random_seed=1)
    same = {
        "random_seed": 2,
        "stream": True,
        "drafter": b"none",
        "num_draft_tokens": 0,
        "priority": 3,
        "cache_pin": True,
    }
    for name, value in same.items():
        ask(coordinator, **{name: value})
    assert (coordinator.answers.hits, coordinator.answers.misses) == (len(same), 1)


def test_a_request_that_skips_the_cache_neither_leaves_its_answer_nor_takes_one(coordinator: Coordinator) -> None:
    ask(coordinator, cache_skip=True)
    ask(coordinator)
    ask(coordinator, cache_skip=True)
    assert (coordinator.answers.hits, coordinator.answers.misses) == (0, 1)
    ask(coordinator)
    assert coordinator.answers.hits == 1


def test_random_answers_are_neither_kept_nor_looked_for(coordinator: Coordinator) -> None:
    for _ in range(2):
        ask(coordinator, temperature=1.0)
        ask(coordinator, temperature=1.0, random_seed=7, num_return_sequences=1)
    assert (coordinator.answers.hits, coordinator.answers.misses) == (1, 1)


def test_a_reset_and_a_new_process_forget_the_answers(coordinator: Coordinator, target: LocalTarget) -> None:
    ask(coordinator)
    target.executor.step(StepRequest(reset=True))  # as `client cache --reset` does, beside the coordinator
    ask(coordinator, text_input=b"E")  # the step that tells of it
    ask(coordinator)
    assert coordinator.answers.hits == 0
    target.restart()
    ask(coordinator, text_input=b"F")
    ask(coordinator)
    assert coordinator.answers.hits == 0
    ask(coordinator)
    assert coordinator.answers.hits == 1


def test_the_cache_is_bounded_and_gives_up_what_was_not_asked_for() -> None:
    cache = AnswerCache(4 * ENTRY_BYTES)
    for number in range(3):
        cache.put(number, Emission(text="x"))
    assert cache.get(0) is not None
    cache.put(3, Emission(text="x"))
    assert [cache.get(number) is not None for number in range(4)] == [True, False, True, True]
    assert len(cache) == 3
    assert 3 * ENTRY_BYTES <= cache.bytes <= 4 * ENTRY_BYTES
    cache.put(0, Emission(text="y"))
    assert len(cache) == 3
    cache.put(5, Emission(text="x" * 4 * ENTRY_BYTES))
    assert cache.get(5) is None, "larger than the whole cache"
    assert len(cache) == 3


def test_a_cache_of_no_size_is_off() -> None:
    assert not AnswerCache(0)
    assert AnswerCache(1 << 20)
