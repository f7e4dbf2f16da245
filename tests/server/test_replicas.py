"""Two targets behind one coordinator: equal answers, prompts that stay where they are known, one that dies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from served_engine import pool_mb
from serving import EXIT_SECONDS, BackgroundStream, idle_reading, results, wait_until

from client import Client
from client.metrics import read_metrics
from launcher.server import Options, TritonServer

NAMES = ("target", "target_2")
TOKENS = 60
REQUESTS: list[tuple[str, dict[str, object]]] = [
    (f"{opening} {number}, there", {"temperature": 0.8 * (number % 2), "random_seed": number})
    for number, opening in enumerate(("Once upon a time", "In the deep sea", "On a high mountain") * 2)
]
DOCUMENT = "The lighthouse keeper wrote down the weather, the ships and the birds of every day. " * 30


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    env = {
        "TANDEM_TARGET_MODELS": ",".join(NAMES),
        "TANDEM_THREADS": "1",
        "TANDEM_KV_CACHE_MB": pool_mb(64, slots=6),
        "TANDEM_GRAPH_MEMORY_MB": "0",  # loads faster
        "TANDEM_MAX_QUEUE_SIZE": "8",
    }
    log = tmp_path_factory.mktemp("replicas") / "server.log"
    with TritonServer(Options(models=("generate", *NAMES), env=env, log=log, exit_seconds=EXIT_SECONDS)) as running:
        yield running


def start(server: TritonServer, tokens: int = TOKENS) -> list[BackgroundStream]:
    return [
        BackgroundStream(server.grpc_url, prompt, max_tokens=tokens, min_length=tokens, **options)
        for prompt, options in REQUESTS
    ]


def placed(server: TritonServer) -> dict[str, float]:
    """Requests by replica since the server's start."""
    idle_reading(server)
    return read_metrics(server.metrics_url).by_label("tandem_placed_requests_total", "model")


def test_the_answers_are_those_of_a_single_target(replicated: TritonServer, server: TritonServer) -> None:
    before = placed(replicated)
    found = results(start(replicated))
    shares = [placed(replicated)[name] - before.get(name, 0) for name in NAMES]
    assert shares == [3, 3], "requests that share nothing are spread"
    assert found == results(start(server))


def test_a_prompt_goes_where_its_beginning_is_known(replicated: TritonServer) -> None:
    with Client(replicated.grpc_url) as client:
        for salt in ("a", "b", "c", "d"):  # four tenants, so that an even spread would separate the turns of most
            history = [placed(replicated)]
            for turn in range(3):
                result = client.generate(DOCUMENT + "And then. " * turn, max_tokens=4, cache_salt=salt)
                history.append(placed(replicated))
                if turn:
                    assert result.cached_prompt_tokens > 300
            homes = [max(NAMES, key=lambda name: now[name] - was[name]) for was, now in pairwise(history)]
            assert len(set(homes)) == 1, homes


def test_one_dies_and_the_other_goes_on(replicated: TritonServer) -> None:
    expected = results(start(replicated))
    before = read_metrics(replicated.metrics_url).value("tandem_target_restarts_total")
    survivor = replicated.stub_pids("target")
    streams = start(replicated)
    for stream in streams:
        stream.wait_for_tokens(5)
    replicated.kill_stub("target_2")
    assert results(streams) == expected
    assert replicated.stub_pids("target") == survivor
    assert idle_reading(replicated).value("tandem_target_restarts_total") == before + 1


def test_a_full_queue_is_passed_by(replicated: TritonServer) -> None:
    """Each may have 32 running and 8 waiting: one target could not take 60 requests."""
    streams = [
        BackgroundStream(replicated.grpc_url, f"Number {number}:", max_tokens=24, min_length=24) for number in range(60)
    ]
    wait_until(lambda: all(stream.tokens or stream.ended for stream in streams), "first tokens")
    for stream in streams:
        stream.result()


def cancelled(server: TritonServer) -> float:
    return idle_reading(server).by_label("tandem_requests_total", "outcome")["cancelled"]


def test_a_cancelled_request_is_found_on_its_replica(replicated: TritonServer) -> None:
    before = cancelled(replicated)
    streams = start(replicated, tokens=400)
    for stream in streams:
        stream.wait_for_tokens(3)
        stream.cancel()
    assert cancelled(replicated) == before + len(REQUESTS)
