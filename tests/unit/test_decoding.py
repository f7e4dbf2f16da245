"""The decoding loop against the definition: whatever happens on the way, the tokens are the same."""

import threading
import time
from pathlib import Path

import pytest
from coordination import END, LocalTarget, expected_tokens, make_loop, make_sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.decoding import DecodingLoop, ServerStopping
from tandem.errors import Cancelled, ExecutorFailed, InvalidRequest, QueueFull, ShuttingDown, TimedOut
from tandem.metrics import Metrics
from tandem.sampling import SamplingParams
from tandem.scheduler import Scheduler
from tandem.step import StepRequest, StepResult

WAIT_S = 90  # in a fresh clone the sampler is compiled first


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[list[int], int, float, int]]:
    """(prompt, max_tokens, temperature, cycles to wait before it arrives) of some requests."""
    tokens = st.lists(st.integers(0, END - 1), min_size=1, max_size=20)
    request = st.tuples(tokens, st.integers(1, 16), st.sampled_from([0.0, 0.7, 1.5]), st.integers(0, 5))
    return draw(st.lists(request, min_size=1, max_size=7))


@settings(max_examples=60, deadline=None)
@given(
    workload=workloads(),
    num_blocks=st.integers(11, 40),
    failures=st.frozensets(st.integers(1, 40), max_size=4),
    max_passes=st.integers(1, 5),
)
def test_tokens_do_not_depend_on_batch_memory_or_failures(
    workload: list[tuple[list[int], int, float, int]], num_blocks: int, failures: frozenset[int], max_passes: int
) -> None:
    """Continuous batching, chunked prefill, preemption and dying targets: none may change a token."""
    # Three in a row without a good step in between would rightly end the requests.
    isolated = frozenset(step for step in failures if not failures & {step - 1, step - 2, step - 3, step - 4})
    target = LocalTarget(num_blocks, isolated)
    loop = make_loop(target, max_passes=max_passes)
    submitted = []
    for number, (prompt, max_tokens, temperature, wait) in enumerate(workload, 1):
        sampling = SamplingParams(temperature=temperature, seed=number, end_ids=(END,))
        sequence, sink = make_sequence(number, prompt, max_tokens, sampling)
        loop._scheduler.add(sequence)
        submitted.append((sequence, sink))
        for _ in range(wait):
            loop.cycle()
    for _ in range(2000):
        if all(sink.ended.is_set() for _, sink in submitted):
            break
        loop.cycle()
    for sequence, sink in submitted:
        assert sink.error is None
        assert sink.emitted.token_ids == expected_tokens(sequence)
        assert sink.emitted.finish_reason == ("stop" if sink.emitted.token_ids[-1] == END else "length")
    loop.cycle()
    assert target.executor.kv_cache.free_blocks == num_blocks, "blocks leaked"


def test_several_passes_in_one_call_save_calls_and_change_no_token() -> None:
    target = LocalTarget()
    loop = make_loop(target, max_passes=4)
    work = [make_sequence(number, [number, 2], length) for number, length in ((1, 16), (2, 9))]
    for sequence, _ in work:
        loop._scheduler.add(sequence)
    while not all(sink.ended.is_set() for _, sink in work):
        loop.cycle()
    for sequence, sink in work:
        assert sink.emitted.token_ids == expected_tokens(sequence)
    assert max(request.passes for request in target.requests) == 4
    assert len(target.requests) < 12
    waiting, _ = make_sequence(3, [1, 2], 9)
    loop._scheduler.add(waiting)
    loop.cycle()
    assert target.requests[-1].passes == 1, "a call with a prompt has one pass"


def test_a_small_pool_preempts() -> None:
    """Without this the property above could hold because nothing was ever preempted."""
    loop = make_loop(LocalTarget(num_blocks=9))
    sinks = []
    for number in range(1, 4):
        sequence, sink = make_sequence(number, [number] * 6, 14, SamplingParams())
        loop._scheduler.add(sequence)
        sinks.append(sink)
    while not all(sink.ended.is_set() for sink in sinks):
        loop.cycle()
    assert loop._metrics.preemptions > 0
    assert loop._metrics.generated_tokens == 3 * 14


def test_a_killed_target_is_reloaded_and_the_text_goes_on() -> None:
    target = LocalTarget(failures=frozenset({5}))
    loop = make_loop(target)
    sequence, sink = make_sequence(1, [1, 2, 3], 12, SamplingParams())
    loop._scheduler.add(sequence)
    while not sink.ended.is_set():
        loop.cycle()
    assert loop._metrics.target_restarts == 1
    assert sink.emitted.token_ids == expected_tokens(sequence)


def test_a_target_reloaded_by_somebody_else_is_noticed_by_its_epoch() -> None:
    target = LocalTarget()
    loop = make_loop(target)
    sequence, sink = make_sequence(1, [1, 2, 3], 12, SamplingParams())
    loop._scheduler.add(sequence)
    for _ in range(4):
        loop.cycle()
    target.restart()
    while not sink.ended.is_set():
        loop.cycle()
    assert sink.emitted.token_ids == expected_tokens(sequence)


def test_a_target_that_stays_dead_fails_the_requests_and_does_not_hang() -> None:
    loop = make_loop(LocalTarget(failures=frozenset(range(1, 1000)), restarts_work=False))
    sequence, sink = make_sequence(1, [1, 2, 3])
    loop._scheduler.add(sequence)
    loop._metrics.kv_blocks_used = 1
    for _ in range(3):
        loop.cycle()
    assert isinstance(sink.error, ExecutorFailed)
    assert "3 times in a row" in str(sink.error)
    assert (loop._metrics.running, loop._metrics.queued, loop._metrics.kv_blocks_used) == (0, 0, 0)


def test_cancelling_frees_the_blocks_within_a_cycle() -> None:
    target = LocalTarget()
    loop = make_loop(target)
    (one, sink_one), (two, sink_two) = make_sequence(1, [1] * 9, 50, SamplingParams()), make_sequence(2, [2], 50)
    loop._scheduler.add(one)
    loop._scheduler.add(two)
    for _ in range(4):
        loop.cycle()
    loop.cancel(one)
    loop.cycle()
    assert isinstance(sink_one.error, Cancelled)
    assert 1 not in target.executor._sequences
    assert not sink_two.ended.is_set()


def test_a_deadline_ends_running_and_waiting_sequences() -> None:
    loop = make_loop(LocalTarget(), max_running=1)
    sinks = []
    for number in (1, 2):
        sequence, sink = make_sequence(number, [1, 2], 1000, SamplingParams())
        sequence.max_tokens = 100
        loop._scheduler.add(sequence)
        sinks.append((sequence, sink))
    loop.cycle()
    for sequence, _ in sinks:
        sequence.deadline = time.monotonic() - 1
    loop.cycle()
    assert [str(sink.error) for _, sink in sinks] == [
        "the request's time was over after 1 of 100 tokens",
        "the request's time was over after 0 of 100 tokens",
    ]
    assert all(isinstance(sink.error, TimedOut) for _, sink in sinks)


def test_what_can_never_fit_is_refused_and_the_rest_runs() -> None:
    loop = make_loop(LocalTarget(num_blocks=4))
    large, large_sink = make_sequence(1, [1] * 10, 10)
    small, small_sink = make_sequence(2, [1], 4, SamplingParams())
    loop._scheduler.add(large)
    loop._scheduler.add(small)
    while not small_sink.ended.is_set():
        loop.cycle()
    assert isinstance(large_sink.error, InvalidRequest)
    assert "KV memory holds 12" in str(large_sink.error)
    assert small_sink.emitted.token_ids == expected_tokens(small)


def test_stop_words_end_the_text_before_them() -> None:
    plain, sink = make_sequence(1, [4, 2], 12, SamplingParams())
    loop = make_loop(LocalTarget())
    loop._scheduler.add(plain)
    while not sink.ended.is_set():
        loop.cycle()
    text = sink.emitted.text
    assert len(text) == 12
    stop = text[5:7]
    stopped, stop_sink = make_sequence(2, [4, 2], 12, SamplingParams(), stop_words=(stop,))
    loop._scheduler.add(stopped)
    while not stop_sink.ended.is_set():
        loop.cycle()
    assert stop_sink.emitted.text == text[: text.index(stop)]
    assert stop_sink.emitted.finish_reason == "stop"


def test_a_full_queue_refuses_and_keeps_what_it_has() -> None:
    loop = make_loop(LocalTarget(), max_running=2, max_queue_size=3)
    for number in range(1, 6):
        loop.submit(make_sequence(number, [1])[0])
    with pytest.raises(QueueFull, match="3 requests wait already"):
        loop.submit(make_sequence(6, [1])[0])
    assert len(loop._inbox) == 5


def test_the_thread_serves_many_clients_and_stops() -> None:
    loop = make_loop(LocalTarget())
    loop.start()
    work = [make_sequence(number, [number, 3], 10, SamplingParams()) for number in range(1, 13)]
    threads = [threading.Thread(target=loop.submit, args=(sequence,)) for sequence, _ in work]
    for thread in threads:
        thread.start()
    for sequence, sink in work:
        assert sink.ended.wait(WAIT_S)
        assert sink.emitted.token_ids == expected_tokens(sequence)
    late, late_sink = make_sequence(99, [1], 10**6, SamplingParams())
    late.max_tokens = 200
    loop.submit(late)
    loop.stop()
    assert isinstance(late_sink.error, ShuttingDown) or late_sink.emitted.finish_reason
    with pytest.raises(ShuttingDown):
        loop.submit(make_sequence(100, [1])[0])


def test_a_bug_in_a_cycle_fails_the_requests_and_keeps_the_thread() -> None:
    target = LocalTarget()
    loop = make_loop(target)
    loop.start()
    good_step, target.step = target.step, None  # type: ignore[method-assign, assignment]
    sequence, sink = make_sequence(1, [1])
    loop.submit(sequence)
    assert sink.ended.wait(WAIT_S)
    assert isinstance(sink.error, ExecutorFailed)
    target.step = good_step  # type: ignore[method-assign]
    again, again_sink = make_sequence(2, [1], 3, SamplingParams())
    loop.submit(again)
    assert again_sink.ended.wait(WAIT_S)
    assert again_sink.emitted.token_ids == expected_tokens(again)
    loop.stop()


def test_a_drain_file_ends_everything(tmp_path: Path) -> None:
    drain_file = tmp_path / "drain"
    loop = DecodingLoop(LocalTarget(num_blocks=200), Scheduler(4, 8, 3), Metrics(), 100, drain_file)
    loop.start()
    sequence, sink = make_sequence(1, [1], 600, SamplingParams())
    loop.submit(sequence)
    drain_file.touch()
    assert sink.ended.wait(WAIT_S)
    assert isinstance(sink.error, ShuttingDown)
    with pytest.raises(ShuttingDown):
        loop.submit(make_sequence(2, [1])[0])
    loop._thread.join(WAIT_S)
    assert loop.has_ended


def test_a_server_that_stops_ends_everything_without_a_restart() -> None:
    target = LocalTarget()
    loop = make_loop(target)

    def stopping(request: StepRequest) -> StepResult:
        raise ServerStopping("told to stop")

    target.step = stopping  # type: ignore[method-assign]
    loop.start()
    sequence, sink = make_sequence(1, [1], 6)
    loop.submit(sequence)
    assert sink.ended.wait(WAIT_S)
    assert isinstance(sink.error, ShuttingDown)
    assert target.epoch == 1
    loop.stop()
