"""Several answers to one request: each is what it would be alone, the prompt is computed once, all fail together."""

from __future__ import annotations

import pytest
from coordination import END, LocalTarget, expected_tokens, make_loop, make_sequence

from tandem.answer import Answer, Stream
from tandem.decoding import DecodingLoop
from tandem.errors import QueueFull, RequestError
from tandem.request import parse_request
from tandem.sampling import SamplingParams
from tandem.sequence import Emission, Sequence

PROMPT = list(range(22))
BLOCK = 4  # of the table engine


class GroupSink:
    """Collects what comes for each sequence of a group."""

    def __init__(self) -> None:
        self.emitted: dict[int, Emission] = {}
        self.errors: list[RequestError] = []

    def emit(self, sequence: Sequence, emission: Emission) -> None:
        assert not self.errors, "something came after the end"
        self.emitted.setdefault(sequence.id, Emission()).extend(emission)

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        self.errors.append(error)


def make_group(count: int, max_tokens: int = 8, first: int = 1) -> tuple[list[Sequence], GroupSink]:
    sink = GroupSink()
    group = []
    for index in range(count):
        sampling = SamplingParams(temperature=1.0, seed=100 + index, end_ids=(END,))
        sequence, _ = make_sequence(first + index, PROMPT, max_tokens, sampling)
        sequence.sink, sequence.group = sink, group
        group.append(sequence)
    return group, sink


def run(loop: DecodingLoop, group: list[Sequence]) -> None:
    for _ in range(500):
        if all(one.ended for one in group):
            loop.cycle()  # frees what they held
            return
        loop.cycle()
    raise AssertionError("the group does not end")


@pytest.mark.parametrize("max_running", [1, 2, 8])
def test_each_answer_is_what_it_is_alone_and_the_prompt_is_computed_once(max_running: int) -> None:
    target = LocalTarget()
    loop = make_loop(target, max_running)
    group, sink = make_group(4)
    loop._scheduler.add(group[0])
    run(loop, group)
    for sequence in group:
        assert sink.emitted[sequence.id].token_ids == expected_tokens(sequence)
        assert sink.emitted[sequence.id].finish_reason
    assert [sequence.reused >= len(PROMPT) // BLOCK * BLOCK for sequence in group] == [False, True, True, True]
    assert loop._metrics.outcomes["success"] == 1
    assert target.executor.kv_cache.free_blocks == target.num_blocks, "blocks leaked"


def test_without_the_wait_every_answer_computes_the_prompt() -> None:
    """The negative control of the test above: sequences that begin together find nothing."""
    loop = make_loop(LocalTarget(), 8)
    group, _ = make_group(4)
    for sequence in group:
        sequence.group = [sequence]
        loop._scheduler.add(sequence)
    run(loop, group)
    assert sum(sequence.reused >= len(PROMPT) // BLOCK * BLOCK for sequence in group) < 3


@pytest.mark.parametrize("cycles", [0, 1, 4, 12])
def test_a_group_is_cancelled_as_a_whole_and_told_so_once(cycles: int) -> None:
    target = LocalTarget()
    loop = make_loop(target, 2)
    group, sink = make_group(3, max_tokens=200)
    loop._scheduler.add(group[0])
    for _ in range(cycles):
        loop.cycle()
    loop.cancel(group[0])
    run(loop, group)
    loop.cycle()
    assert [error.outcome for error in sink.errors] == ["cancelled"]
    assert sum(loop._metrics.outcomes.values()) == 1
    assert not loop._scheduler.has_work
    assert target.executor.kv_cache.free_blocks == target.num_blocks, "blocks leaked"


def test_a_group_whose_target_stays_dead_fails_once() -> None:
    target = LocalTarget(failures=frozenset(range(6, 20)), restarts_work=False)
    loop = make_loop(target, 8)
    group, sink = make_group(3, max_tokens=200)
    loop._scheduler.add(group[0])
    run(loop, group)
    assert [error.outcome for error in sink.errors] == ["error"]


def test_a_killed_target_changes_no_answer_of_a_group() -> None:
    target = LocalTarget(failures=frozenset({7}))
    loop = make_loop(target, 8)
    group, sink = make_group(3)
    loop._scheduler.add(group[0])
    run(loop, group)
    assert target.epoch == 2
    for sequence in group:
        assert sink.emitted[sequence.id].token_ids == expected_tokens(sequence)


def test_the_queue_counts_every_answer() -> None:
    loop = make_loop(LocalTarget(), max_running=2, max_queue_size=3)
    with pytest.raises(QueueFull):
        loop.submit(make_group(6)[0][0])
    loop.submit(make_group(5)[0][0])


def answer_of(count: int, stream: bool) -> tuple[Answer, list[Sequence]]:
    fields = {"text_input": [b"A"], "stream": [stream], "temperature": [1.0], "num_return_sequences": [count]}
    group, _ = make_group(count)
    streams = {sequence: Stream(sequence, index, "") for index, sequence in enumerate(group)}
    return Answer(None, parse_request(fields, 100), streams), group


def said(answer: Answer, sequence: Sequence, text: str, finish_reason: str | None = None) -> None:
    stream = answer.streams[sequence]
    stream.emission.extend(Emission(text, [1], [0.0], [0], [len(text)], finish_reason))
    stream.has_unsent = answer.request.stream or finish_reason is not None


def test_streamed_answers_come_one_by_one() -> None:
    answer, group = answer_of(2, stream=True)
    said(answer, group[1], "b")
    assert [[(part.stream.index, part.emission.text) for part in parts] for parts in answer.take(10.0, 1.0)] == [
        [(1, "b")]
    ]
    said(answer, group[0], "a", "stop")
    said(answer, group[1], "c")
    responses = answer.take(10.5, 1.0)  # too soon for the second, which goes on
    assert [[(part.stream.index, part.emission.text) for part in parts] for parts in responses] == [[(0, "a")]]
    assert list(answer.streams) == [group[1]]
    said(answer, group[1], "d", "length")
    (parts,) = answer.take(10.6, 1.0)
    assert [(part.stream.index, part.emission.text) for part in parts] == [(1, "cd")]
    assert not answer.streams


def test_answers_that_are_not_streamed_come_together() -> None:
    answer, group = answer_of(2, stream=False)
    said(answer, group[0], "a", "stop")
    said(answer, group[1], "b")
    assert not answer.take(10.0, 1.0)
    said(answer, group[1], "c", "length")
    (parts,) = answer.take(10.0, 1.0)
    assert [(part.stream.index, part.emission.text) for part in parts] == [(0, "a"), (1, "bc")]


def test_a_failed_answer_that_is_not_streamed_sends_no_text() -> None:
    answer, group = answer_of(2, stream=False)
    said(answer, group[0], "a", "stop")
    answer.error = RequestError("broken")
    assert not answer.take(10.0, 1.0)


def test_a_failed_stream_sends_what_it_has() -> None:
    answer, group = answer_of(2, stream=True)
    said(answer, group[0], "a")
    answer.error = RequestError("broken")
    assert [[part.emission.text for part in parts] for parts in answer.take(0.0, 9.0)] == [["a"]]
