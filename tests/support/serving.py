"""What tests of a running server share: its state, raw gRPC calls, and streams that run beside a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import grpc
import requests
from tritonclient.grpc import service_pb2

from client import Client, Result, ServerError
from client.channel import CHANNEL_OPTIONS, STREAM_METHOD
from client.metrics import Reading, read_metrics
from client.response import Chunk, Collector
from launcher.server import TritonServer

BOUND_S = 120.0  # against hanging; nothing here is a measurement
POLL_S = 0.05
# Triton waits so long for what never ends: a killed model, the state of a cancelled stream. For servers whose end is no
# matter of the test.
EXIT_SECONDS = 5

PUBLISH_S = 0.5  # how often the server publishes its metrics
IN_BAND = "IN_BAND"  # an error inside a response, which is how Triton answers on a stream

IDLE = {"running_sequences": 0.0, "queued_sequences": 0.0, "kv_blocks_used": 0.0}


def wait_until(condition: Callable[[], object], what: str, seconds: float = BOUND_S) -> None:
    """Poll until `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(POLL_S)


def gauges(server: TritonServer) -> dict[str, float]:
    """The gauges that are zero on an idle server."""
    reading = read_metrics(server.metrics_url)
    return {name: reading.value(f"tandem_{name}") for name in IDLE}


def wait_for_gauges(server: TritonServer, **wanted: float) -> None:
    """Wait until the gauges of these names have these values."""
    wait_until(
        lambda: wanted.items() <= gauges(server).items(),
        f"{wanted}; now {gauges(server)}",
    )


def idle_reading(server: TritonServer) -> Reading:
    """Metrics of a server with nothing running, queued or held; waits until it is so and they no longer change.

    The server publishes its values a few times a second, one after the other: what has not changed over two
    intervals holds everything that was counted.
    """

    def read() -> str:
        text = requests.get(f"http://{server.metrics_url}/metrics", timeout=BOUND_S).text
        return "\n".join(line for line in text.splitlines() if "tandem_" in line) + "\n"

    deadline = time.monotonic() + BOUND_S
    previous, current = "", read()
    while current != previous or any(Reading(current).value(f"tandem_{name}") for name in IDLE):
        assert time.monotonic() < deadline, f"the server does not become idle: {gauges(server)}"
        time.sleep(2 * PUBLISH_S)
        previous, current = current, read()
    return Reading(current)


def stub_pids(server: TritonServer) -> dict[str, list[int]]:
    """Process ids of the models' stubs: they change when a model is loaded anew."""
    return {model: sorted(server.stub_pids(model)) for model in ("generate", "target")}


class RawCalls:
    """Sends any message to the streaming call, also such as the client library would not build."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.insecure_channel(url, CHANNEL_OPTIONS)
        self._call = self._channel.unary_stream(**{**STREAM_METHOD, "request_serializer": _serialized})

    def send(self, message: service_pb2.ModelInferRequest | bytes, seconds: float = BOUND_S) -> tuple[str, str]:
        """Send a message and read all responses.

        Returns:
            The name of the gRPC status and its message; ("OK", text) for an answer, and for an error that Triton
            itself puts into a response ("IN_BAND", its message).
        """
        text = b""
        try:
            for response in self._call(message, timeout=seconds):
                if response.error_message:
                    return IN_BAND, response.error_message
                for output, raw in zip(
                    response.infer_response.outputs, response.infer_response.raw_output_contents, strict=True
                ):
                    if output.name == "text_output":
                        text += raw[4:]
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        return "OK", text.decode("utf-8", "replace")

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> RawCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serialized(message: service_pb2.ModelInferRequest | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


class BackgroundStream:
    """One stream that is read in a thread, so that the test can do something meanwhile."""

    def __init__(self, url: str, prompt: str, **parameters: object) -> None:
        self._collector = Collector()
        self.tokens: list[int] = []
        self.error: ServerError | None = None
        self._client = Client(url)
        self._stream = self._client.stream(prompt, return_token_ids=True, **parameters)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for chunk in self._stream:
                self._take(chunk)
        except ServerError as error:
            self.error = error

    def _take(self, chunk: Chunk) -> None:
        self.tokens += chunk.token_ids or ()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_for_tokens(self, count: int) -> None:
        """Wait until at least `count` tokens have come, and fail if the stream ends before."""
        wait_until(lambda: len(self.tokens) >= count or self.ended, f"{count} tokens of a stream")
        assert len(self.tokens) >= count, f"ended after {len(self.tokens)} of {count} tokens: {self.error}"

    def cancel(self) -> None:
        self._stream.cancel()

    def result(self) -> Result:
        """Wait for the end; raises the error of a stream that failed."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self._stream.result()

    def wait(self) -> None:
        """Wait for the end, whatever it is."""
        self._thread.join(BOUND_S)
        assert self.ended, f"a stream hangs after {len(self.tokens)} tokens"


def results(streams: Sequence[BackgroundStream]) -> list[tuple[str, tuple[int, ...] | None]]:
    """Text and token ids of each stream, once all have ended."""
    return [(result.text, result.token_ids) for result in (stream.result() for stream in streams)]
