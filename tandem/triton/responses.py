"""Sends answers to clients and notices clients that left, on a thread of its own: each send costs its caller time."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from tandem.coordinator import Coordinator
from tandem.errors import RequestError
from tandem.request import GenerateRequest
from tandem.sequence import Emission, Sequence
from tandem.triton.errors import error_response

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# How often each open stream is asked whether its client is still there: asking costs a round trip to the server, so
# the interval grows with the number of streams.
CANCEL_POLL_S = 0.05
CANCEL_POLLS_PER_S = 40
IDLE_POLL_S = 0.2
# The engine's threads wait for each other in every layer: what takes one core from them costs both. Sending fits into
# the moments when one of them is idle anyway.
SENDER_NICENESS = 10

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Stream:
    """One request that still waits for responses."""

    sender: Any
    request: GenerateRequest
    echo: str  # the prompt, if the client wants it in front of the answer
    cumulative_log_prob: float = 0.0
    unsent: Emission = field(default_factory=Emission)
    has_unsent: bool = False
    error: RequestError | None = None
    last_sent: float = 0.0
    last_polled: float = 0.0


class _Due(NamedTuple):
    """What is sent next on a stream. The error is taken with the emission: it may come while that is being sent."""

    sequence: Sequence
    stream: _Stream
    emission: Emission
    error: RequestError | None


class ResponseSender:
    """Implements `tandem.sequence.Sink`.

    Tokens that come while the previous response of the same stream is still unsent, or sooner after it than
    `max_responses_per_s` over all streams allows, go out together in one response. The first and the last go at once.
    """

    def __init__(self, coordinator: Coordinator, max_responses_per_s: int) -> None:
        self._coordinator = coordinator
        self._seconds_per_response = 1 / max_responses_per_s if max_responses_per_s else 0.0
        self._streams: dict[Sequence, _Stream] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send what is left and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: GenerateRequest, sender: Any, timeout_s: float | None) -> None:
        """Queue a request whose answer goes to `sender`. Raises `RequestError` if it is refused."""
        sequence, prompt = self._coordinator.prepare(request, self, timeout_s)
        # Under the lock, so that no emission of the new sequence comes before its stream is known.
        with self._wake:
            self._coordinator.submit(sequence)
            self._streams[sequence] = _Stream(sender, request, "" if request.exclude_input_in_output else prompt)
            self._wake.notify()

    def emit(self, sequence: Sequence, emission: Emission) -> None:
        """See `Sink.emit`."""
        with self._wake:
            stream = self._streams[sequence]
            stream.unsent.extend(emission)
            ready = stream.request.stream or emission.finish_reason is not None
            if ready and not stream.has_unsent:
                stream.has_unsent = True
                self._wake.notify()

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        """See `Sink.fail`."""
        with self._wake:
            self._streams[sequence].error = error
            self._wake.notify()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SENDER_NICENESS)
        while True:
            with self._wake:
                due = self._due()
                if not due and self._stopping:
                    return
                if not due:
                    self._wake.wait(CANCEL_POLL_S if self._streams else IDLE_POLL_S)
                    due = self._due()
                if not self._streams and not due:
                    self._coordinator.all_sent()
            for item in due:
                try:
                    self._send(item)
                except Exception:  # one stream's trouble must not end the thread that serves all
                    log.exception("a response could not be sent; its request is cancelled")
                    self._coordinator.cancel(item.sequence)
            self._poll_cancellations()

    def _due(self) -> list[_Due]:
        """Take what may be sent now; the lock is held. A stream that ends is forgotten: nothing follows its end."""
        due = []
        now = time.monotonic()
        interval = self._seconds_per_response * len(self._streams)
        for sequence, stream in list(self._streams.items()):
            ended = stream.error is not None or stream.unsent.finish_reason is not None
            if ended or (stream.has_unsent and now - stream.last_sent >= interval):
                due.append(_Due(sequence, stream, stream.unsent, stream.error))
                stream.unsent, stream.has_unsent, stream.last_sent = Emission(), False, now
            if ended:
                del self._streams[sequence]
        return due

    def _send(self, due: _Due) -> None:
        stream, emission = due.stream, due.emission
        final = emission.finish_reason is not None
        if final or (stream.request.stream and self._is_readable(stream, emission)):
            response = self._response(due.sequence, stream, emission)
            stream.sender.send(response, flags=FINAL if final else 0)
        if due.error is not None:
            stream.sender.send(error_response(due.error), flags=FINAL)

    @staticmethod
    def _is_readable(stream: _Stream, emission: Emission) -> bool:
        """False while there is only an unfinished character, or what may become a stop word."""
        wants_tokens = stream.request.return_log_probs or stream.request.return_token_ids
        return bool(emission.text or stream.echo or (wants_tokens and emission.token_ids))

    @staticmethod
    def _response(sequence: Sequence, stream: _Stream, emission: Emission) -> Any:
        tensors = [_strings("text_output", stream.echo + emission.text)]
        stream.echo = ""
        if stream.request.return_log_probs:
            stream.cumulative_log_prob += sum(emission.log_probs)
            tensors.append(pb_utils.Tensor("output_log_probs", np.array([emission.log_probs], np.float32)))
            tensors.append(pb_utils.Tensor("cum_log_probs", np.array([[stream.cumulative_log_prob]], np.float32)))
        if stream.request.return_token_ids:
            tensors.append(pb_utils.Tensor("output_ids", np.array([emission.token_ids], np.int32)))
            tensors.append(pb_utils.Tensor("output_origins", np.array([emission.origins], np.uint8)))
            tensors.append(pb_utils.Tensor("output_text_lengths", np.array([emission.text_lengths], np.int32)))
        if emission.finish_reason is not None:
            tensors.append(_strings("finish_reason", emission.finish_reason))
            counts = {
                "prompt_tokens": len(sequence.prompt),
                "cached_prompt_tokens": sequence.reused,
                "generated_tokens": sequence.generated,
                "drafted_tokens": sequence.drafted,
                "accepted_draft_tokens": sequence.accepted_drafts,
            }
            tensors += [pb_utils.Tensor(name, np.array([[count]], np.int32)) for name, count in counts.items()]
        return pb_utils.InferenceResponse(tensors)

    def _poll_cancellations(self) -> None:
        now = time.monotonic()
        with self._wake:
            interval = max(CANCEL_POLL_S, len(self._streams) / CANCEL_POLLS_PER_S)
            streams = [(s, stream) for s, stream in self._streams.items() if now - stream.last_polled >= interval]
        for sequence, stream in streams:
            stream.last_polled = now
            if not sequence.cancelled and stream.sender.is_cancelled():
                self._coordinator.cancel(sequence)


def _strings(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([[text.encode()]], dtype=np.object_))
