"""What a request may ask for, how long it may take, how many may wait, and what happens when KV memory is short."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests
from served_engine import HAS_SLOTS, LONG, NARROW_LENGTH
from serving import IN_BAND, BackgroundStream, RawCalls, idle_reading, results, wait_for_gauges

from client import Client, InvalidRequest, Unavailable
from client.metrics import Reading
from client.request import build_request
from launcher.server import Options, TritonServer
from tandem.settings import CoordinatorSettings

FOREVER_S = 600.0
SHORT_S = 0.3
OVER = r"the request's time was over after {} of {} tokens"

# ------------------------------------------------------------------ a short queue

MAX_LENGTH, MAX_QUEUE_SIZE = NARROW_LENGTH, 2  # of `narrow_server`


@pytest.fixture
def blocked(narrow_server) -> Iterator[TritonServer]:
    """`narrow_server` while one long stream has its only place."""
    stream = BackgroundStream(narrow_server.grpc_url, "One", max_tokens=LONG, min_length=LONG, timeout=FOREVER_S)
    stream.wait_for_tokens(1)
    yield narrow_server
    stream.cancel()
    stream.wait()
    idle_reading(narrow_server)


def queue(server: TritonServer, count: int, **parameters: object) -> list[BackgroundStream]:
    """Streams that wait behind the one that runs."""
    streams = []
    for number in range(1, count + 1):
        streams.append(BackgroundStream(server.grpc_url, "Two", timeout=FOREVER_S, **parameters))
        wait_for_gauges(server, running_sequences=1, queued_sequences=number)
    return streams


def outcomes(server: TritonServer) -> dict[str, float]:
    return idle_reading(server).by_label("tandem_requests_total", "outcome")


def test_a_full_queue_refuses(blocked):
    waiting = queue(blocked, MAX_QUEUE_SIZE, max_tokens=2)
    with Client(blocked.grpc_url) as client, pytest.raises(Unavailable) as caught:
        client.generate("Three", max_tokens=2)
    assert caught.value.message == "the queue is full: 2 requests wait already; try again later"
    answer = generate(blocked, text_input="Three", max_tokens=2)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("[UNAVAILABLE] the queue is full")
    for stream in waiting:
        stream.cancel()
        stream.wait()


def test_refused_requests_are_counted_and_those_that_waited_are_served(narrow_server):
    before = outcomes(narrow_server)
    running = BackgroundStream(narrow_server.grpc_url, "One", max_tokens=LONG, min_length=LONG, timeout=FOREVER_S)
    running.wait_for_tokens(1)
    waiting = queue(narrow_server, MAX_QUEUE_SIZE, max_tokens=2, min_length=2)
    with Client(narrow_server.grpc_url) as client:
        for _ in range(3):
            with pytest.raises(Unavailable):
                client.generate("Three", max_tokens=2)
    running.cancel()
    assert [stream.result().generated_tokens for stream in waiting] == [2, 2]
    running.wait()
    after = outcomes(narrow_server)
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {"rejected": 3, "cancelled": 1, "success": 2}


def test_higher_priority_is_served_first(narrow_server):
    running = BackgroundStream(narrow_server.grpc_url, "One", max_tokens=LONG, min_length=LONG, timeout=FOREVER_S)
    running.wait_for_tokens(1)
    low = queue(narrow_server, 1, max_tokens=30, min_length=30, priority=1)[0]
    high = BackgroundStream(narrow_server.grpc_url, "Two", max_tokens=30, min_length=30, priority=9, timeout=FOREVER_S)
    wait_for_gauges(narrow_server, queued_sequences=2)
    running.cancel()
    high.result()
    assert not low.ended, "the one with lower priority, which came first, was served first"
    assert low.result().generated_tokens == 30


def test_time_runs_out_while_waiting(blocked):
    with RawCalls(blocked.grpc_url) as calls:
        status, message = calls.send(build_request("Two", None, {"max_tokens": 9}, stream=True, timeout=SHORT_S))
    assert (status, message) == (IN_BAND, "[UNAVAILABLE] " + OVER.format(0, 9))


def test_requests_without_a_timeout_get_the_default(narrow_server):
    with Client(narrow_server.grpc_url) as client, pytest.raises(Unavailable, match=OVER.format(r"\d+", LONG)):
        client.generate("One", max_tokens=LONG, min_length=LONG)
    assert idle_reading(narrow_server).by_label("tandem_requests_total", "outcome")["timeout"] >= 1


# ------------------------------------------------------------------ time and length of one request


def generate(server: TritonServer, **fields: object) -> requests.Response:
    return requests.post(f"http://{server.http_url}/v2/models/generate/generate", json=fields, timeout=60)


def test_time_runs_out_while_running(server):
    parameters = {"max_tokens": LONG, "min_length": LONG}
    before = outcomes(server)
    with RawCalls(server.grpc_url) as calls:
        status, message = calls.send(build_request("One", None, parameters, stream=True, timeout=SHORT_S))
    assert status == IN_BAND
    wanted = r"\[UNAVAILABLE\] " + OVER.format(r"\d+", LONG)
    assert re.fullmatch(wanted, message)
    for timeout in ({"timeout": 300_000}, {"parameters": {"timeout": 300_000}}):
        answer = generate(server, text_input="One", **parameters, **timeout)
        assert answer.status_code == 400
        assert re.fullmatch(wanted, answer.json()["error"])
    assert outcomes(server)["timeout"] - before["timeout"] == 3


def test_time_that_suffices_changes_nothing(server):
    with Client(server.grpc_url) as client:
        free, timed = (client.generate("One", max_tokens=8, timeout=timeout) for timeout in (None, FOREVER_S))
    assert timed.text == free.text


def test_lengths_are_limited(narrow_server):
    with Client(narrow_server.grpc_url) as client:
        with pytest.raises(InvalidRequest) as caught:
            client.generate("word " * 5000, max_tokens=1)
        assert caught.value.message.startswith("text_input: has ")
        assert caught.value.message.endswith(f"prompt and answer may have {MAX_LENGTH}")
        with pytest.raises(
            InvalidRequest, match=rf"^messages: has \d+ tokens; prompt and answer may have {MAX_LENGTH}$"
        ):
            client.generate(messages=[{"role": "user", "content": "word " * 5000}], max_tokens=1)
        room = MAX_LENGTH - client.generate("Hello there", max_tokens=1).prompt_tokens
        with pytest.raises(
            InvalidRequest, match=rf"^max_tokens: is {room + 1}; .* there is room for {room} of {MAX_LENGTH}$"
        ):
            client.generate("Hello there", max_tokens=room + 1)
        with pytest.raises(Unavailable):  # accepted; the default timeout ends it
            client.generate("Hello there", max_tokens=room, min_length=room)


# ------------------------------------------------------------------ a long prompt beside a stream


def steps_with_two(reading: Reading) -> float:
    """Steps in which exactly two sequences ran."""
    buckets = {float(le): count for le, count in reading.by_label("tandem_step_rows_bucket", "le").items()}
    return buckets[2] - buckets[1]


def test_a_long_prompt_comes_in_beside_a_stream_in_bounded_chunks(server):
    """Every step that takes a part of the prompt carries the running stream on by a token."""
    before = idle_reading(server)
    running = BackgroundStream(server.grpc_url, "One", max_tokens=LONG, min_length=LONG)
    running.wait_for_tokens(3)
    with Client(server.grpc_url) as client:
        held = len(running.tokens)
        long = client.generate("word " * 1500, max_tokens=1, cache_salt="chunks")  # nothing of it is cached
        gained = len(running.tokens) - held
    running.cancel()
    running.wait()
    after = idle_reading(server)
    chunks = -(-long.prompt_tokens // CoordinatorSettings().mixed_step_tokens)
    assert long.prompt_tokens >= 1500
    # The stream's token beside the first chunk may have run ahead.
    assert steps_with_two(after) - steps_with_two(before) in (chunks - 1, chunks)
    # All but the last few, which may still be on their way to this process.
    assert gained > chunks // 2


# ------------------------------------------------------------------ too little KV memory

SMALL_POOL_MB = 7
paged = pytest.mark.skipif(HAS_SLOTS, reason="a slot has room for a whole sequence: nobody is preempted, others wait")


@pytest.fixture(scope="module")
def cramped(tmp_path_factory) -> Iterator[TritonServer]:
    """A KV pool of a few hundred tokens, in the mode in which the shape of a step does not change a logit."""
    env = {
        "TANDEM_KV_CACHE_MB": str(SMALL_POOL_MB),
        "TANDEM_INVARIANCE": "step",
        "TANDEM_KV_CACHE": "f16",
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
    }
    log = tmp_path_factory.mktemp("cramped") / "server.log"
    with TritonServer(Options(models=("target", "generate"), env=env, log=log)) as running:
        yield running


@paged
def test_what_can_never_fit_is_refused(cramped):
    with Client(cramped.grpc_url) as client:
        with pytest.raises(InvalidRequest, match=r"^max_tokens: with the prompt 2\d\d\d tokens; KV memory holds \d+$"):
            client.generate("One", max_tokens=2000)
        with pytest.raises(InvalidRequest, match="KV memory holds"):
            client.generate("word " * 2000, max_tokens=1)
        assert client.generate("One", max_tokens=2).text


PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "In the deep sea there lives",
    "def fibonacci(n):",
    "The history of the bicycle began",
    "A recipe for tomato soup:",
]
TOKENS = 120


def sampled(number: int) -> dict[str, object]:
    """Half of the streams are greedy."""
    options = {"max_tokens": TOKENS, "min_length": TOKENS, "drafter": "none"}
    return options | ({"temperature": 0.8, "random_seed": number} if number % 2 else {})


@paged
def test_preempted_streams_go_on_as_if_nothing_had_been(cramped):
    """Alone each has the pool for itself; all together they need more than it holds. Nothing fails or is sent twice."""
    with Client(cramped.grpc_url) as client:
        alone = [
            client.generate(prompt, return_token_ids=True, **sampled(number)) for number, prompt in enumerate(PROMPTS)
        ]
    before = idle_reading(cramped)
    assert before.value("tandem_preemptions_total") == 0
    together = [BackgroundStream(cramped.grpc_url, prompt, **sampled(number)) for number, prompt in enumerate(PROMPTS)]
    assert results(together) == [(result.text, result.token_ids) for result in alone]
    after = idle_reading(cramped)
    needed = sum(-(-(result.prompt_tokens + TOKENS) // 32) for result in alone)
    assert needed > 1.5 * after.value("tandem_kv_blocks_total"), "the pool is not small enough for this test"
    assert after.value("tandem_preemptions_total") > 0
    outcome_before, outcome_after = (
        reading.by_label("tandem_requests_total", "outcome") for reading in (before, after)
    )
    changed = {name: outcome_after[name] - outcome_before[name] for name in outcome_after}
    assert {name: count for name, count in changed.items() if count} == {"success": len(PROMPTS)}
