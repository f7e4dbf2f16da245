"""Spans of traced requests: what the decoding cycle did for them, below the span that Triton made for the request.

A request is traced if Triton, which samples, hands over a context for it (W3C Trace Context: `traceparent`). Spans go
to an OpenTelemetry collector by OTLP over HTTP, from a thread of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from tandem.step import StepRequest, StepResult

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

EXPORT_TIMEOUT_S = 2.0  # a collector that has gone must not hold the server when it stops


class Answered(Protocol):
    """What is told of an answer that has ended: see `tandem.sequence.Sequence`."""

    reused: int
    drafted: int
    accepted_drafts: int

    @property
    def generated(self) -> int: ...


class RequestTrace:
    """The spans of one request. Times are those of `time.monotonic`, in seconds; attributes are named `tandem.…`."""

    def __init__(self, tracer: Tracer, parent: Context, asked: Mapping[str, float], arrival: float) -> None:
        self._tracer = tracer
        self._span = self._start("generation", parent, arrival, asked)
        self._context = _below(self._span)
        self._arrival = arrival
        self._waiting = True

    def cycle(self, started: float, called: float, ended: float, request: StepRequest, result: StepResult) -> None:
        """One cycle in which the request had a row, with the call of `target` in it.

        Args:
            started: when the cycle was planned.
            called: when the target was called.
            ended: when it had answered.
            request: what it was asked for, for the whole batch.
            result: what it answered.
        """
        if self._waiting:
            self._waiting = False
            self._start("queue", self._context, self._arrival).end(_epoch_ns(started))
        did = {
            "rows": len(request.rows),
            "tokens": sum(len(row.tokens) for row in request.rows),
            "chosen_tokens": len(result.chosen),
            "drafted_tokens": int(result.drafted.sum()),
            "passes": len(result.pass_rows),
        }
        cycle = self._start("cycle", self._context, started, did)
        seconds = {"propose_s": result.propose_s, "forward_s": result.forward_s, "sampling_s": result.sampling_s}
        self._start("target", _below(cycle), called, seconds).end(_epoch_ns(ended))
        cycle.end()

    def event(self, name: str, at: float) -> None:
        """Something that happened to the request."""
        self._span.add_event(name, timestamp=_epoch_ns(at))

    def end(self, group: Sequence[Answered]) -> None:
        """The request has got the last token of all its answers."""
        counts = {
            "cached_prompt_tokens": group[0].reused,
            "generated_tokens": sum(one.generated for one in group),
            "drafted_tokens": sum(one.drafted for one in group),
            "accepted_draft_tokens": sum(one.accepted_drafts for one in group),
        }
        self._span.set_attributes(_named(counts))
        self._span.end()

    def fail(self, error: Exception) -> None:
        """The request is over without an answer."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end()

    def _start(
        self, name: str, context: Context, at: float, values: Mapping[str, float] = MappingProxyType({})
    ) -> Span:
        return self._tracer.start_span(name, context, attributes=_named(values), start_time=_epoch_ns(at))


class Tracing:
    """Makes the traces of one server's requests, and sends what has ended to the collector."""

    def __init__(self, url: str, processor: SpanProcessor | None = None) -> None:
        """`url`: of the collector, for example http://127.0.0.1:4318/v1/traces; `processor`: where spans go instead."""
        # Imported here: a server that does not trace does without them.
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource({"service.name": "tandem"}))
        self._provider.add_span_processor(processor or _sender(url))
        self._tracer = self._provider.get_tracer("tandem")

    def begin(self, context: str, asked: Mapping[str, float], arrival: float) -> RequestTrace | None:
        """The trace of a request, or None if it is not traced.

        Args:
            context: as Triton gives it: a JSON object with the headers of W3C Trace Context, or nothing.
            asked: what the request asks for: attributes of its span.
            arrival: when the request came.
        """
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(json.loads(context) if context else {})
        if not trace.get_current_span(parent).get_span_context().is_valid:
            return None
        return RequestTrace(self._tracer, parent, asked, arrival)

    def stop(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _sender(url: str) -> SpanProcessor:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S))


def _below(span: Span) -> Context:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span)


def _named(values: Mapping[str, float]) -> dict[str, float]:
    return {f"tandem.{name}": value for name, value in values.items()}


def _epoch_ns(at: float) -> int:
    """A time of `time.monotonic` as spans want it: nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - at) * 1e9)
