"""Who talks to Triton about a request: only the thread that sends, because Triton crashes if two do at a time."""

from __future__ import annotations

import importlib
import sys
import threading
import types
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from tandem.errors import QueueFull
from tandem.request import parse_request


class Error(Exception):
    """Stands for `TritonError` of the module that only the Python backend's process has."""

    UNAVAILABLE = 14

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@pytest.fixture
def responses(monkeypatch):
    """`tandem.triton.responses`, with as much of Triton's module as it needs to be imported and to send an error."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    backend.TritonError = Error
    backend.InferenceResponse = SimpleNamespace
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    for name in ("tandem.triton.errors", "tandem.triton.responses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("tandem.triton.responses")
    for name in ("tandem.triton.errors", "tandem.triton.responses"):
        sys.modules.pop(name, None)


@dataclass
class Sender:
    """A request's response sender that notes who used it for what."""

    used: list[tuple[str, str]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def is_cancelled(self):
        self.note("asked")
        assert not self.over.is_set(), "Triton has forgotten this request"
        return False

    def send(self, response, flags):
        self.note("sent")
        self.errors.append(response.error)
        self.over.set()

    def note(self, what):
        self.used.append((what, threading.current_thread().name))


class FullCoordinator:
    """Accepts the request, and refuses it when it is to be queued: after the sender's thread has seen it."""

    def __init__(self, sender):
        self.sender = sender
        self.refused = []

    def prepare(self, request, sink, timeout_s, trace_context):
        sequence = _Sequence()
        sequence.group = [sequence]
        return sequence, "prompt"

    def submit(self, request, sequence):
        while not self.sender.used:  # until it has been asked whether its client is still there
            threading.Event().wait(0.01)
        raise QueueFull("the queue is full")

    def count_refused(self, error):
        self.refused.append(error)

    def cancel(self, sequence):
        raise AssertionError("nobody cancelled")

    def all_sent(self):
        pass


class QueueingCoordinator(FullCoordinator):
    """Queues a request, or refuses it."""

    full = False

    def submit(self, request, sequence):
        if self.full:
            raise QueueFull("the queue is full")


class _Sequence:
    cancelled = False
    group: list[_Sequence]


def test_a_request_that_the_queue_refuses_is_answered_by_the_thread_that_polls(responses):
    sender = Sender()
    coordinator = FullCoordinator(sender)
    parts = responses.ResponseSender(coordinator, 0)
    parts.start()
    try:
        parts.submit(parse_request({"text_input": [b"One"]}, max_prompt_bytes=100), sender, None)
        assert sender.over.wait(10)
    finally:
        parts.stop()
    assert [str(error) for error in sender.errors] == ["[UNAVAILABLE] the queue is full"]
    assert {thread for _, thread in sender.used} == {"responses"}
    assert sender.used[-1] == ("sent", "responses"), "nothing is asked behind the final response"
    assert len(coordinator.refused) == 1


def test_clients_that_have_gone_are_looked_for_sooner_while_others_are_refused(responses, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(responses.time, "monotonic", lambda: now)
    coordinator = QueueingCoordinator(None)
    parts = responses.ResponseSender(coordinator, 0)  # its thread is not started: it is asked to poll here
    senders = [Sender() for _ in range(400)]
    request = parse_request({"text_input": [b"One"]}, max_prompt_bytes=100)
    for sender in senders:
        parts.submit(request, sender, None)

    def asked_after(seconds):
        nonlocal now
        before = sum(len(sender.used) for sender in senders)
        now += seconds
        parts._poll_cancellations()
        return sum(len(sender.used) for sender in senders) - before

    assert asked_after(100) == 400
    assert asked_after(3) == 0  # 400 at 40 a second: in 10 s
    coordinator.full = True
    parts.submit(request, Sender(), None)
    assert asked_after(0) == 400  # 400 at 200 a second: the 3 s were enough
    assert asked_after(6) == 0, "nobody has been refused for a while"
