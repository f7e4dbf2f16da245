"""The process of the target dies: streams go on to the text they would have had, or end with a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_engine import default_engine, pool_mb
from serving import EXIT_SECONDS, BackgroundStream, idle_reading, results, stub_pids, wait_until

from client import Client, ServerError
from client.metrics import read_metrics
from launcher.server import Options, TritonServer

TOKENS = 400
REQUESTS: list[tuple[str, dict[str, object]]] = [
    ("Once upon a time", {}),
    ("The capital of France is", {"temperature": 0.8, "random_seed": 7}),
    ("In the deep sea there lives", {}),
    ("A recipe for tomato soup:", {"temperature": 0.8, "random_seed": 8, "top_p": 0.9, "repetition_penalty": 1.2}),
]


def start(server: TritonServer) -> list[BackgroundStream]:
    return [
        BackgroundStream(server.grpc_url, prompt, max_tokens=TOKENS, min_length=TOKENS, **options)
        for prompt, options in REQUESTS
    ]


@pytest.fixture(scope="module")
def fragile_server(tmp_path_factory) -> Iterator[TritonServer]:
    """A server whose engine directory, in `options.env`, is a link, which a test can take away for a while."""
    directory = tmp_path_factory.mktemp("fragile")
    engine = directory / "engine"
    engine.symlink_to(default_engine(), target_is_directory=True)
    env = {
        "TANDEM_TARGET_ENGINE": str(engine),
        "TANDEM_KV_CACHE_MB": pool_mb(64, slots=6),
        "TANDEM_GRAPH_MEMORY_MB": "512",  # graphs for as many streams as these tests have: it is loaded again and again
    }
    options = Options(models=("target", "generate"), env=env, log=directory / "server.log", exit_seconds=EXIT_SECONDS)
    with TritonServer(options) as running:
        yield running


def restarts(server: TritonServer) -> float:
    return read_metrics(server.metrics_url).value("tandem_target_restarts_total")


@pytest.fixture(scope="module")
def expected(fragile_server) -> list[tuple[str, tuple[int, ...] | None]]:
    """What the requests give when nothing happens."""
    return results(start(fragile_server))


def test_killed_in_mid_stream(fragile_server, expected):
    before, pids = restarts(fragile_server), stub_pids(fragile_server)
    streams = start(fragile_server)
    for stream in streams:
        stream.wait_for_tokens(5)
    killed = fragile_server.kill_stub("target")
    assert killed == pids["target"]
    assert results(streams) == expected
    assert idle_reading(fragile_server).value("tandem_target_restarts_total") == before + 1
    after = stub_pids(fragile_server)
    assert after["generate"] == pids["generate"]
    assert len(after["target"]) == 1
    assert after["target"] != pids["target"]


def test_killed_twice(fragile_server, expected):
    before = restarts(fragile_server)
    streams = start(fragile_server)
    for kills in (1, 2):  # the second while the streams of the first go on
        for stream in streams:
            stream.wait_for_tokens(len(stream.tokens) + 4)
        killed = fragile_server.kill_stub("target")
        # Not until the restart is counted: the streams would be over by then.
        wait_until(lambda killed=killed: fragile_server.stub_pids("target") not in ([], killed), f"restart {kills}")
    assert results(streams) == expected
    assert idle_reading(fragile_server).value("tandem_target_restarts_total") == before + 2


def test_killed_while_idle(fragile_server, expected):
    before = idle_reading(fragile_server).value("tandem_target_restarts_total")
    fragile_server.kill_stub("target")
    assert results(start(fragile_server)) == expected
    assert idle_reading(fragile_server).value("tandem_target_restarts_total") == before + 1


def test_killed_with_a_queue(narrow_server):
    """Those that wait are neither lost nor run out of order."""
    options = {"max_tokens": 12, "min_length": 12, "timeout": 600}
    with Client(narrow_server.grpc_url) as client:
        alone = [client.generate(prompt, **options).text for prompt in ("One", "Two")]
    streams = [BackgroundStream(narrow_server.grpc_url, prompt, **options) for prompt in ("One", "Two")]
    streams[0].wait_for_tokens(2)
    narrow_server.kill_stub("target")
    assert [stream.result().text for stream in streams] == alone


@pytest.fixture
def lost_engine(fragile_server) -> Iterator[Path]:
    """The link to the engine, which is put back after the test."""
    link = Path(fragile_server.options.env["TANDEM_TARGET_ENGINE"])
    away = link.with_name("away")
    link.rename(away)
    yield away
    if away.is_symlink():
        away.rename(link)


def test_a_target_that_cannot_come_back(fragile_server, expected, lost_engine):
    """Streams and new requests get an error, and all is well again once the engine is."""
    streams = start(fragile_server)
    for stream in streams:
        stream.wait_for_tokens(5)
    fragile_server.kill_stub("target")
    for stream in streams:
        with pytest.raises(ServerError) as caught:
            stream.result()
        assert caught.value.status == "INTERNAL"
        assert "the target failed" in caught.value.message
    with Client(fragile_server.grpc_url) as client:
        with pytest.raises(ServerError) as caught:
            client.generate("One", max_tokens=2)
        assert caught.value.status == "INTERNAL"
        lost_engine.rename(fragile_server.options.env["TANDEM_TARGET_ENGINE"])
        assert client.generate("One", max_tokens=2).generated_tokens == 2
    assert results(start(fragile_server)) == expected
    idle_reading(fragile_server)
