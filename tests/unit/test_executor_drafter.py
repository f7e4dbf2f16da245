"""A draft model with an executor of its own: its cache follows the target's text, and its death costs only speed."""

from __future__ import annotations

import threading
import time

import pytest
from coordination import END, LocalTarget, expected_tokens, make_sequence
from guessing import eager

from tandem.decoding import DecodingLoop
from tandem.executor_drafter import FEED_TOKENS, ExecutorDrafter
from tandem.metrics import Metrics
from tandem.sampling import SamplingParams, SamplingState
from tandem.scheduler import Scheduler
from tandem.speculation import Drafts, DraftState
from tandem.step import OpenSequence, StepRequest

WAIT_S = 90  # in a fresh clone the sampler is compiled first


def state_of(history: list[int], prompt_length: int = 2, sequence: int = 1) -> DraftState:
    opened = OpenSequence(sequence, prompt_length, SamplingParams(), "draft")
    state = DraftState(opened, SamplingState(opened.sampling, prompt_length))
    state.sampling.append(history)
    return state


def greedy(history: list[int], count: int) -> list[int]:
    return expected_tokens(make_sequence(1, history, count, SamplingParams())[0])


def tokens_fed(request: StepRequest) -> int:
    return sum(len(row.tokens) for row in request.rows)


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_the_same_model_as_draft_is_always_right(temperature: float) -> None:
    """Its noise, positions and history are the target's, so it proposes what the target chooses."""
    draft = LocalTarget(num_blocks=200)
    drafter = ExecutorDrafter(draft)
    target = LocalTarget(num_blocks=60, speculation=lambda: eager(drafter))
    loop = DecodingLoop(target, Scheduler(4, 8, 3, 3), Metrics(), 100)
    work = []
    for number in range(1, 5):
        sampling = SamplingParams(temperature=temperature, seed=number, repetition_penalty=1.2, end_ids=(END,))
        sequence, sink = make_sequence(number, [number, 5, 6], 30, sampling)
        sequence.drafter, sequence.max_drafts = "draft", 3 + number
        loop._scheduler.add(sequence)
        work.append((sequence, sink))
    while not all(sink.ended.is_set() for _, sink in work):
        loop.cycle()
    loop.cycle()
    assert sum(loop._metrics.accepted) == sum(loop._metrics.verified) > 20
    drafter.propose([state_of([1, 2], sequence=99)], [1])
    assert set(draft.executor._sequences) == {99}, "ended sequences are closed with the next step"


def test_only_what_is_new_is_fed() -> None:
    draft = LocalTarget()
    drafter = ExecutorDrafter(draft)
    state = state_of([1, 2, 3], 3)
    first = drafter.propose([state], [4])[0].tokens
    assert first == greedy([1, 2, 3], 4)
    assert tokens_fed(draft.requests[-1]) == 3
    # Two drafts accepted, and the target's own token behind them.
    state.sampling.append([*first[:2], 9])
    assert drafter.propose([state], [2])[0].tokens == greedy([1, 2, 3, *first[:2], 9], 2)
    assert tokens_fed(draft.requests[-1]) == 1
    # All rejected.
    state.sampling.append([8])
    assert drafter.propose([state], [2])[0].tokens == greedy([1, 2, 3, *first[:2], 9, 8], 2)
    assert tokens_fed(draft.requests[-1]) == 1


def test_everything_accepted_leaves_the_last_draft_to_be_fed() -> None:
    draft = LocalTarget()
    drafter = ExecutorDrafter(draft)
    state = state_of([1, 2, 3])
    first = drafter.propose([state], [3])[0].tokens
    state.sampling.append([*first, 9])
    assert drafter.propose([state], [1])[0].tokens == greedy([1, 2, 3, *first, 9], 1)
    assert tokens_fed(draft.requests[-1]) == 2, "the last draft was never in the draft's cache, and the bonus token"


def test_rows_may_want_different_numbers_of_drafts() -> None:
    drafter = ExecutorDrafter(LocalTarget())
    drafts = drafter.propose([state_of([1, 2]), state_of([3, 4], sequence=2)], [1, 4])
    assert [one.tokens for one in drafts] == [greedy([1, 2], 1), greedy([3, 4], 4)]
    assert all(0 < confidence <= 1 for one in drafts for confidence in one.confidences)


def test_a_long_prompt_is_read_in_chunks() -> None:
    draft = LocalTarget(num_blocks=500)
    prompt = [1, 2, 3] * 400
    assert ExecutorDrafter(draft).propose([state_of(prompt, len(prompt))], [2])[0].tokens == greedy(prompt, 2)
    fed = [row.limit or len(row.tokens) for request in draft.requests for row in request.rows]
    assert fed == [FEED_TOKENS, FEED_TOKENS, 1200 - 2 * FEED_TOKENS]


def test_prompt_and_answer_are_fed_in_steps_of_their_own() -> None:
    """The engine computes an answer's tokens wrongly in the step of the prompt before them."""
    draft = LocalTarget(num_blocks=500)
    history = [1, 2, 3] * 400
    assert ExecutorDrafter(draft).propose([state_of(history, 600)], [2])[0].tokens == greedy(history, 2)
    fed = [row.limit or len(row.tokens) for request in draft.requests for row in request.rows]
    assert fed == [FEED_TOKENS, 600 - FEED_TOKENS, FEED_TOKENS, 600 - FEED_TOKENS]


def test_a_draft_without_memory_proposes_nothing() -> None:
    drafter = ExecutorDrafter(LocalTarget(num_blocks=1))
    assert drafter.propose([state_of([1, 2, 3, 4, 5, 6], 6)], [2]) == [Drafts([], [])]
    assert drafter.propose([state_of([1] * 1200, 1200, sequence=3)], [2]) == [Drafts([], [])]
    assert drafter.propose([state_of([1, 2], sequence=2)], [2])[0].tokens == greedy([1, 2], 2)


def test_a_dead_draft_is_silent_until_it_is_back() -> None:
    draft = LocalTarget(failures=frozenset({2}))
    loaded, load = threading.Event(), draft._load
    draft._load = lambda: loaded.wait(WAIT_S) and load()  # type: ignore[method-assign]
    drafter = ExecutorDrafter(draft)
    state = state_of([1, 2, 3], 3)
    assert drafter.propose([state], [2])[0].tokens == greedy([1, 2, 3], 2)
    assert drafter.propose([state], [2]) == [Drafts([], [])]
    assert drafter.propose([state], [2]) == [Drafts([], [])], "while it is loaded, the target does not wait"
    loaded.set()
    deadline = time.monotonic() + WAIT_S
    while not (drafts := drafter.propose([state], [2])[0].tokens):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert drafts == greedy([1, 2, 3], 2)
    assert drafter.failures == 1


def test_a_draft_reloaded_by_somebody_else_is_fed_again() -> None:
    draft = LocalTarget()
    drafter = ExecutorDrafter(draft)
    state = state_of([1, 2, 3])
    drafter.propose([state], [2])
    draft.restart()
    assert drafter.propose([state], [2]) == [Drafts([], [])], "it knows the sequence no more"
    assert drafter.propose([state], [2])[0].tokens == greedy([1, 2, 3], 2)
