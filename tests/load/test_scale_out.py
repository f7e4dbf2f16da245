"""Two real servers behind a real HAProxy on loopback: chats stay where their KV cache is; one server may die."""

from __future__ import annotations

import signal
import time

import pytest
from serving import BackgroundStream, wait_until

from benchmarks.haproxy import HaproxyMissingError, haproxy, program
from client import Client
from client.metrics import read_metrics
from launcher import processes
from launcher.server import TritonServer

pytestmark = [pytest.mark.load, pytest.mark.timeout(1800)]
# Two of them have to fit beside each other.
ENVIRONMENT = {"TANDEM_GRAPH_MEMORY_MB": "0", "TANDEM_KV_CACHE_MB": "128", "TANDEM_THREADS": "1"}
SYSTEM = "You know these words: " + " ".join(f"word{number}" for number in range(60))
LONG = 1500  # tokens that no stream comes to the end of
CHATS = [f"chat {number}" for number in range(6)]


def generated(server: TritonServer) -> float:
    return read_metrics(server.metrics_url).value("tandem_generated_tokens_total")


def running(server: TritonServer) -> float:
    return read_metrics(server.metrics_url).value("tandem_running_sequences")


def kill(server: TritonServer) -> None:
    """As a machine that is switched off: everything at once, and nothing is said."""
    processes.signal_all(processes.session_pids(server.pid), signal.SIGKILL)


def test_two_servers(start_server, tmp_path):
    try:
        program()
    except HaproxyMissingError as error:
        pytest.skip(str(error))
    options = {"models": ("target", "generate"), "env": ENVIRONMENT, "start_seconds": 600}
    servers: list[TritonServer] = [start_server(**options) for _ in range(2)]
    with haproxy(servers, tmp_path / "haproxy.log") as url, Client(url) as client:
        used = [generated(server) for server in servers]
        reused = {}
        for turn in range(2):
            for chat in CHATS:
                messages = [
                    {"role": "system", "content": f"{chat}. {SYSTEM}"},
                    {"role": "user", "content": f"Turn {turn}"},
                ]
                result = client.generate(messages=messages, affinity=chat, max_tokens=8, min_length=8)
                reused[turn, chat] = result.cached_prompt_tokens / result.prompt_tokens
        assert all(reused[0, chat] < 0.3 for chat in CHATS), reused
        assert all(reused[1, chat] > 0.8 for chat in CHATS), f"a second turn went to the other server: {reused}"
        time.sleep(1)
        assert all(generated(server) > before for server, before in zip(servers, used, strict=True)), (
            "one server did everything"
        )

        streams = [
            BackgroundStream(url, f"{chat}: tell me", affinity=chat, max_tokens=LONG, min_length=LONG) for chat in CHATS
        ]
        for stream in streams:
            stream.wait_for_tokens(2)  # all have begun to read, so none can be moved without its client's knowing
        wait_until(lambda: sum(map(running, servers)) == len(CHATS), "the servers say what they run")
        doomed = running(servers[0])
        assert 0 < doomed < len(CHATS)
        kill(servers[0])
        wait_until(lambda: sum(stream.ended for stream in streams) == doomed, "the dead server's streams end, at once")
        failed = [stream for stream in streams if stream.ended]
        print(*(f"{stream.error!r} ({stream.error.status})" for stream in failed if stream.error), sep="\n")
        assert all(stream.error and stream.error.status == "UNAVAILABLE" for stream in failed)
        for stream in streams:
            if stream not in failed:
                stream.wait_for_tokens(len(stream.tokens) + 5)
                stream.cancel()
        # Every conversation goes on where there is a server.
        for chat in CHATS:
            assert client.generate("One", affinity=chat, max_tokens=2, min_length=2).generated_tokens == 2
