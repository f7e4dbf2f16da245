"""A client that cancels or goes away frees what it had, whatever its request was doing, and disturbs nobody."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable

import pytest
from served_engine import LONG
from serving import BackgroundStream, gauges, idle_reading, wait_for_gauges, wait_until

from client import Cancelled, Client
from client.metrics import Reading, read_metrics
from launcher.server import TritonServer

WHOLE, STREAM = "/v2/models/generate/generate", "/v2/models/generate/generate_stream"
PROMPT = "The history of the bicycle began"


class HttpRequest:
    """An HTTP request on a socket of its own."""

    def __init__(self, server: TritonServer, path: str, **fields: object) -> None:
        host, port = server.http_url.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.socket.sendall(head.encode() + body)

    def wait_for_text(self) -> None:
        received = b""
        while b"text_output" not in received:
            piece = self.socket.recv(4096)
            assert piece, f"the server closed the connection: {received!r}"
            received += piece

    def close(self, *, abruptly: bool) -> None:
        if abruptly:  # no farewell: the server gets a reset
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def cancel_grpc(server: TritonServer) -> Callable[[], None]:
    stream = BackgroundStream(server.grpc_url, "One", max_tokens=LONG, min_length=LONG)
    stream.wait_for_tokens(2)
    return stream.cancel


def close_grpc_connection(server: TritonServer) -> Callable[[], None]:
    client = Client(server.grpc_url)
    stream = client.stream("One", max_tokens=LONG, min_length=LONG)
    next(stream)
    # The stream is held until then: leaving it would cancel it as well.
    return lambda stream=stream: client.close()


def close_http(*, abruptly: bool) -> Callable[[TritonServer], Callable[[], None]]:
    def start(server: TritonServer) -> Callable[[], None]:
        request = HttpRequest(server, STREAM, text_input="One", max_tokens=LONG, min_length=LONG, stream=True)
        request.wait_for_text()
        return lambda: request.close(abruptly=abruptly)

    return start


WAYS = {
    "gRPC cancel": cancel_grpc,
    "gRPC connection closed": close_grpc_connection,
    "HTTP stream closed": close_http(abruptly=False),
    "HTTP stream reset": close_http(abruptly=True),
}


def test_leaving_frees_the_sequence_and_others_go_on_unchanged(server):
    before = idle_reading(server)
    other = BackgroundStream(server.grpc_url, PROMPT, max_tokens=LONG, min_length=LONG)
    other.wait_for_tokens(2)
    for name, start in WAYS.items():
        leave = start(server)
        wait_for_gauges(server, running_sequences=2)
        leave()
        wait_until(lambda: gauges(server)["running_sequences"] == 1, f"{name}: only the other stream runs")
        other.wait_for_tokens(len(other.tokens) + 2)
    other.cancel()
    other.wait()
    assert isinstance(other.error, Cancelled)
    after = idle_reading(server)
    assert changed_outcomes(before, after) == {"cancelled": len(WAYS) + 1}
    with Client(server.grpc_url) as client:
        length = len(other.tokens)
        alone = client.generate(PROMPT, max_tokens=length, min_length=length, return_token_ids=True)
    assert tuple(other.tokens) == alone.token_ids


def test_cancelling_what_waits(narrow_server):
    before = idle_reading(narrow_server).value("tandem_prompt_tokens_total")
    running = BackgroundStream(narrow_server.grpc_url, "One", max_tokens=LONG, min_length=LONG, timeout=600)
    running.wait_for_tokens(1)
    words = 100
    waiting = BackgroundStream(narrow_server.grpc_url, "word " * words, max_tokens=LONG, min_length=LONG, timeout=600)
    wait_for_gauges(narrow_server, running_sequences=1, queued_sequences=1)
    waiting.cancel()
    wait_for_gauges(narrow_server, running_sequences=1, queued_sequences=0)
    running.wait_for_tokens(len(running.tokens) + 2)
    running.cancel()
    running.wait()
    waiting.wait()
    assert waiting.tokens == []
    after = idle_reading(narrow_server).value("tandem_prompt_tokens_total")
    assert after < before + words, "the one that waited was run"


def test_http_clients_that_left_before_the_first_response(narrow_server):
    """Triton looks at an HTTP connection only when it writes: with the first token, or when the time is over."""
    before = idle_reading(narrow_server)
    running = BackgroundStream(narrow_server.grpc_url, "One", max_tokens=LONG, min_length=LONG, timeout=600)
    running.wait_for_tokens(1)
    fields = {"text_input": "Two", "max_tokens": LONG, "min_length": LONG}
    stream = HttpRequest(narrow_server, STREAM, **fields, stream=True, timeout=600_000_000)
    wait_for_gauges(narrow_server, queued_sequences=1)
    whole = HttpRequest(narrow_server, WHOLE, **fields, timeout=500_000)
    wait_for_gauges(narrow_server, queued_sequences=2)
    stream.close(abruptly=True)
    whole.close(abruptly=False)
    running.cancel()
    running.wait()
    after = idle_reading(narrow_server)
    assert changed_outcomes(before, after) == {"cancelled": 2, "timeout": 1}


def changed_outcomes(before: Reading, after: Reading) -> dict[str, float]:
    """How many requests ended in which way between two readings."""
    counts, earlier = (reading.by_label("tandem_requests_total", "outcome") for reading in (after, before))
    return {name: counts[name] - earlier[name] for name in counts if counts[name] != earlier[name]}


def prompt_tokens(server: TritonServer) -> float:
    return read_metrics(server.metrics_url).value("tandem_prompt_tokens_total")


def test_cancelling_during_the_prefill_of_a_long_prompt(server):
    """Beside a running stream the prompt comes in by small chunks, so that there is time to cancel."""
    before = idle_reading(server).value("tandem_prompt_tokens_total")
    other = BackgroundStream(server.grpc_url, PROMPT, max_tokens=LONG, min_length=LONG)
    other.wait_for_tokens(2)
    words = 1800
    long = BackgroundStream(server.grpc_url, "word " * words, max_tokens=1)
    wait_until(lambda: prompt_tokens(server) > before + 100, "a part of the prompt has been computed")
    long.cancel()
    wait_for_gauges(server, running_sequences=1)
    other.wait_for_tokens(len(other.tokens) + 2)
    other.cancel()
    for stream in (long, other):
        stream.wait()
        assert isinstance(stream.error, Cancelled)
    assert long.tokens == []
    assert idle_reading(server).value("tandem_prompt_tokens_total") < before + words, "it was computed to its end"


@pytest.mark.parametrize("path", [WHOLE, STREAM])
def test_leaving_before_the_body_is_complete(server, path):
    """A request that never became one must not count, hang or harm."""
    before = idle_reading(server).by_label("tandem_requests_total", "outcome")
    host, port = server.http_url.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b'{"text_input": "One"')
    with Client(server.grpc_url) as client:
        assert client.generate("One", max_tokens=2).text
    after = idle_reading(server).by_label("tandem_requests_total", "outcome")
    assert after == before | {"success": before["success"] + 1}
