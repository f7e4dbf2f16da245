"""Traces of the real server, taken by a receiver of OTLP: Triton's spans and those of the cycle are one tree."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from served_engine import LONG
from serving import idle_reading

from client import Client, channel
from client.request import build_request
from client.response import Collector as Answer
from launcher.server import Options, TritonServer

PARENT = "00f067aa0ba902b7"
REQUESTS = 5


@dataclass
class Span:
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool = False


@dataclass
class Receiver:
    """What a collector is sent: by Triton as JSON, by us as protobuf."""

    spans: list[Span] = field(default_factory=list)

    def take(self, body: bytes, kind: str) -> None:
        if kind == "application/json":
            for resource in json.loads(body)["resourceSpans"]:
                for span in (span for scope in resource["scopeSpans"] for span in scope["spans"]):
                    found = {a["key"]: next(iter(a["value"].values())) for a in span.get("attributes", [])}
                    parent = span.get("parentSpanId", "")
                    self.spans.append(Span(f"triton {span['name']}", span["traceId"], span["spanId"], parent, found))
            return
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                found = {a.key: a.value.int_value or a.value.double_value for a in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                self.spans.append(Span(span.name, *ids, found, span.status.code == 2))

    def wait_for(self, *names: str, count: int) -> list[Span]:
        """All spans, once each of these names has come so often."""
        deadline = time.monotonic() + 60
        while any(sum(span.name == name for span in self.spans) < count for name in names):
            assert time.monotonic() < deadline, f"of {names} only {[span.name for span in self.spans]} came"
            time.sleep(0.1)
        return list(self.spans)


class Collector(ThreadingHTTPServer):
    """Where a server sends its spans."""

    def __init__(self) -> None:
        received = self.received = Receiver()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.take(body, self.headers.get("Content-Type", ""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    env = {"TANDEM_TRACE_URL": collector.url, "TANDEM_TRACE_RATE": "1", "TANDEM_GRAPH_MEMORY_MB": "0"}
    log = tmp_path_factory.mktemp("traced") / "server.log"
    with TritonServer(Options(models=("target", "generate"), env=env, log=log)) as running:
        yield running


def ask(server: TritonServer, trace: str) -> None:
    """An answer of nine tokens, asked for within a trace of the client's."""
    request = build_request("The capital of France is", None, {"max_tokens": 9, "min_length": 9}, stream=True)
    with grpc.insecure_channel(server.grpc_url) as connection:
        call = connection.unary_stream(**channel.STREAM_METHOD)
        answer = Answer()
        for response in call(request, metadata=[("traceparent", f"00-{trace}-{PARENT}-01")]):
            answer.read(response)


def test_a_clients_trace_reaches_the_calls_of_the_target(collector: Collector, traced: TritonServer) -> None:
    before = idle_reading(traced)
    traces = [f"{number + 1:032x}" for number in range(REQUESTS)]
    for trace in traces:
        ask(traced, trace)
    spans = collector.received.wait_for("generation", "triton InferRequest", "triton generate", count=REQUESTS)
    by_id = {span.id: span for span in spans}

    def path(span: Span) -> list[str]:
        return [span.name, *(path(by_id[span.parent]) if span.parent in by_id else [span.parent])]

    steps = idle_reading(traced).value("tandem_step_rows_count") - before.value("tandem_step_rows_count")
    generations = [span for span in spans if span.name == "generation"]
    assert len({span.trace for span in generations}) == REQUESTS
    for generation in generations:
        own = [span for span in spans if span.trace == generation.trace]
        calls = [span for span in own if span.name == "target"]
        assert 2 <= len(calls) <= steps
        for call in calls:
            assert path(call)[:5] == ["target", "cycle", "generation", "triton generate", "triton InferRequest"]
        chosen = sum(span.attributes["tandem.chosen_tokens"] for span in own if span.name == "cycle")
        assert chosen == generation.attributes["tandem.generated_tokens"] == 9
        assert [path(span)[1] for span in own if span.name == "queue"] == ["generation"]
    # Triton 2.51 begins a trace of its own for some requests: 2 of 60 on a busy machine.
    continued = [span for span in generations if span.trace in traces]
    assert len(continued) > REQUESTS // 2
    assert {path(span)[-1] for span in continued} == {PARENT}


def test_what_is_refused_has_a_span_with_the_error(collector: Collector, traced: TritonServer) -> None:
    with Client(traced.grpc_url) as client, pytest.raises(Exception, match="time was over"):
        client.generate("Once upon a time", max_tokens=LONG, min_length=LONG, timeout=0.3)
    deadline = time.monotonic() + 30
    while not any(span.failed for span in collector.received.spans):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (failed,) = [span for span in collector.received.spans if span.failed]
    assert failed.name == "generation"


def test_a_collector_that_has_gone_costs_no_answer_and_no_clean_end(collector: Collector, traced: TritonServer) -> None:
    collector.stop()
    with Client(traced.grpc_url) as client:
        assert client.generate("One", max_tokens=5).generated_tokens
    stopped = traced.stop()
    assert stopped is not None
    assert (stopped.exit_code, stopped.killed, stopped.removed) == (0, (), ())
