"""Spans of traced requests, as the decoding loop makes them, and what tells Triton to trace."""

from __future__ import annotations

import json
import time

import pytest
from coordination import LocalTarget, make_loop, make_sequence
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from launcher.tracing import trace_arguments
from tandem.sequence import Sequence
from tandem.tracing import Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = json.dumps({"traceparent": f"00-{TRACE}-{PARENT}-01"})


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def traced(spans: InMemorySpanExporter, sequence: Sequence, context: str = CONTEXT) -> None:
    sequence.arrival = time.monotonic()
    tracing = Tracing("", SimpleSpanProcessor(spans))
    sequence.trace = tracing.begin(context, {"prompt_tokens": len(sequence.prompt)}, sequence.arrival)


def run(sequence: Sequence, target: LocalTarget | None = None) -> None:
    loop = make_loop(target or LocalTarget())
    loop.submit(sequence)
    loop.start()
    sink = sequence.sink
    assert sink.ended.wait(90)  # type: ignore[attr-defined]
    loop.stop()


def by_name(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    return inner.parent is not None and inner.parent.span_id == outer.context.span_id


def test_cycles_and_calls_are_below_the_requests_span_and_that_below_tritons(spans: InMemorySpanExporter) -> None:
    sequence, sink = make_sequence(1, list(range(1, 12)), max_tokens=6)
    traced(spans, sequence)
    target = LocalTarget()
    run(sequence, target)
    found = by_name(spans)
    (request,), (queue,) = found["generation"], found["queue"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    assert within(queue, request)
    calls = [step for step in target.requests if step.rows]
    assert len(found["cycle"]) == len(found["target"]) == len(calls)
    for cycle, call, step in zip(found["cycle"], found["target"], calls, strict=True):
        assert within(cycle, request)
        assert within(call, cycle)
        assert cycle.start_time <= call.start_time <= call.end_time <= cycle.end_time
        assert cycle.attributes is not None
        assert cycle.attributes["tandem.tokens"] == sum(len(row.tokens) for row in step.rows)
    chosen = sum(cycle.attributes["tandem.chosen_tokens"] for cycle in found["cycle"])
    assert request.attributes is not None
    assert chosen == request.attributes["tandem.generated_tokens"] == len(sink.emitted.token_ids)
    assert [event.name for event in request.events] == ["first token"]


def test_a_request_that_triton_does_not_trace_has_no_spans(spans: InMemorySpanExporter) -> None:
    for context in ("", "{}", json.dumps({"traceparent": "00-0-0-00"})):
        sequence, _ = make_sequence(1, [1, 2, 3])
        traced(spans, sequence, context)
        assert sequence.trace is None
        run(sequence)
    assert not spans.get_finished_spans()


def test_a_cycle_says_what_it_did_for_others_too(spans: InMemorySpanExporter) -> None:
    (sequence, _), (other, _) = make_sequence(1, [1, 2, 3], 4), make_sequence(2, [4, 5], 30)
    traced(spans, sequence)
    loop = make_loop(LocalTarget())
    loop.submit(sequence)
    loop.submit(other)
    while not sequence.ended:
        for waiting in list(loop._inbox):
            loop._scheduler.add(waiting)
        loop._inbox.clear()
        loop.cycle()
    assert {cycle.attributes["tandem.rows"] for cycle in by_name(spans)["cycle"]} == {2}


def test_a_request_that_fails_has_its_error_in_the_span(spans: InMemorySpanExporter) -> None:
    sequence, _ = make_sequence(1, [1, 2, 3])
    traced(spans, sequence)
    sequence.cancelled = True
    run(sequence)
    (request,) = spans.get_finished_spans()
    assert (request.name, request.status.is_ok) == ("generation", False)
    assert "cancelled" in (request.status.description or "")


def test_triton_is_told_to_trace_where_an_address_is_given() -> None:
    assert trace_arguments({}) == trace_arguments({"TANDEM_TRACE_RATE": "5"}) == []
    arguments = trace_arguments({"TANDEM_TRACE_URL": "http://collector:4318/v1/traces", "TANDEM_TRACE_RATE": "7"})
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in arguments
    assert "--trace-config=rate=7" in arguments


@pytest.mark.parametrize(
    ("variable", "value"),
    [("TANDEM_TRACE_URL", "collector:4318"), ("TANDEM_TRACE_RATE", "0"), ("TANDEM_TRACE_RATE", "a")],
)
def test_what_cannot_be_traced_to_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=variable):
        trace_arguments({"TANDEM_TRACE_URL": "http://x"} | {variable: value})
