"""Sends answers to clients and notices clients that left, on a thread of its own: each send costs its caller time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from tandem.answer import Answer, Part, Stream
from tandem.coordinator import Coordinator
from tandem.errors import RequestError
from tandem.request import GenerateRequest
from tandem.sequence import Emission, Sequence
from tandem.triton.errors import error_response, request_error

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# How often each open stream is asked whether its client is still there: asking costs a round trip to the server, so
# the interval grows with the number of streams.
CANCEL_POLL_S = 0.05
CANCEL_POLLS_PER_S = 40
# While requests are refused, clients that have gone hold the places of others in the queue: they are looked for sooner.
FULL_CANCEL_POLLS_PER_S = 200
FULL_S = 5.0  # so long after the last request that was refused
IDLE_POLL_S = 0.2
# The engine's threads wait for each other in every layer: what takes one core from them costs both. Sending fits into
# the moments when one of them is idle anyway.
SENDER_NICENESS = 10

log = logging.getLogger(__name__)


class _Due(NamedTuple):
    """What is sent next on an answer. The error is taken with the parts: it may come while those are being sent."""

    first: Sequence
    answer: Answer
    responses: list[list[Part]]
    error: RequestError | None
    final: bool  # the answer ends with the last of these


class ResponseSender:
    """Implements `tandem.sequence.Sink`.

    Tokens that come while the previous response of the same stream is still unsent, or sooner after it than
    `max_responses_per_s` over all streams allows, go out together in one response. The first and the last go at once.
    """

    def __init__(self, coordinator: Coordinator, max_responses_per_s: int) -> None:
        self._coordinator = coordinator
        self._seconds_per_response = 1 / max_responses_per_s if max_responses_per_s else 0.0
        self._answers: dict[Sequence, Answer] = {}  # by the first sequence of the request
        self._refused_at = -FULL_S
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

    def submit(self, request: GenerateRequest, sender: Any, timeout_s: float | None, trace_context: str = "") -> None:
        """Queue a request whose answer goes to `sender`; that it is refused then is an answer too.

        Raises:
            InvalidRequest: it cannot be read; nothing goes to `sender`.
        """
        first, prompt = self._coordinator.prepare(request, self, timeout_s, trace_context)
        echo = "" if request.exclude_input_in_output else prompt
        streams = {sequence: Stream(sequence, index, echo) for index, sequence in enumerate(first.group)}
        with self._wake:  # known before the first emission comes
            self._answers[first] = Answer(sender, request, streams)
        try:
            self._coordinator.submit(request, first)
        except Exception as failure:
            # Sent by this sender's thread only: Triton 2.51 crashes if it is asked about the cancellation of a request
            # whose final response another thread sends in that moment.
            error = request_error(failure)
            self._refused_at = time.monotonic()
            self._coordinator.count_refused(error)
            self.fail(first, error)

    def emit(self, sequence: Sequence, emission: Emission) -> None:
        """See `Sink.emit`."""
        with self._wake:
            answer = self._answers[sequence.group[0]]
            stream = answer.streams[sequence]
            stream.emission.extend(emission)
            ready = answer.request.stream or emission.finish_reason is not None
            if ready and not stream.has_unsent:
                stream.has_unsent = True
                self._wake.notify()

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        """See `Sink.fail`."""
        with self._wake:
            self._answers[sequence.group[0]].error = error
            self._wake.notify()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SENDER_NICENESS)
        while True:
            with self._wake:
                due = self._due()
                if not due and self._stopping:
                    return
                if not due:
                    self._wake.wait(CANCEL_POLL_S if self._answers else IDLE_POLL_S)
                    due = self._due()
                if not self._answers and not due:
                    self._coordinator.all_sent()
            for item in due:
                try:
                    self._send(item)
                except Exception:  # one stream's trouble must not end the thread that serves all
                    log.exception("a response could not be sent; its request is cancelled")
                    self._coordinator.cancel(item.first)
            self._poll_cancellations()

    def _due(self) -> list[_Due]:
        """Take what may be sent now; the lock is held. An answer that ends is forgotten."""
        due = []
        now = time.monotonic()
        interval = self._seconds_per_response * sum(len(answer.streams) for answer in self._answers.values())
        for first, answer in list(self._answers.items()):
            responses = answer.take(now, interval)
            final = answer.error is not None or not answer.streams
            if responses or final:
                due.append(_Due(first, answer, responses, answer.error, final))
            if final:
                del self._answers[first]
        return due

    def _send(self, due: _Due) -> None:
        answer = due.answer
        for place, parts in enumerate(due.responses, start=1):
            if due.final and due.error is None and place == len(due.responses):
                answer.sender.send(self._response(answer, parts), flags=FINAL)
            elif self._is_readable(answer, parts):
                answer.sender.send(self._response(answer, parts))
        if due.error is not None:
            answer.sender.send(error_response(due.error), flags=FINAL)

    @staticmethod
    def _is_readable(answer: Answer, parts: Seq[Part]) -> bool:
        """False while there is only an unfinished character, or what may become a stop word."""
        wants_tokens = answer.request.return_log_probs or answer.request.return_token_ids
        return any(
            emission.text or emission.finish_reason or stream.echo or (wants_tokens and emission.token_ids)
            for stream, emission in parts
        )

    @staticmethod
    def _response(answer: Answer, parts: Seq[Part]) -> Any:
        """One response; strings and counts are one for each part, tokens of all parts follow each other."""
        request, emissions = answer.request, [part.emission for part in parts]
        tensors = [_strings("text_output", [stream.take_echo() + emission.text for stream, emission in parts])]
        if request.num_return_sequences > 1:
            tensors.append(_integers("sequence_index", [part.stream.index for part in parts]))
        if request.return_log_probs:
            for stream, emission in parts:
                stream.cumulative_log_prob += sum(emission.log_probs)
            log_probs = np.array([[value for emission in emissions for value in emission.log_probs]], np.float32)
            sums = np.array([[part.stream.cumulative_log_prob for part in parts]], np.float32)
            tensors += [pb_utils.Tensor("output_log_probs", log_probs), pb_utils.Tensor("cum_log_probs", sums)]
        if request.return_token_ids:
            tensors.append(_integers("output_ids", [token for emission in emissions for token in emission.token_ids]))
            origins = np.array([[origin for emission in emissions for origin in emission.origins]], np.uint8)
            tensors.append(pb_utils.Tensor("output_origins", origins))
            tensors.append(_integers("output_text_lengths", [n for one in emissions for n in one.text_lengths]))
        if emissions[0].finish_reason is not None:
            tensors.append(_strings("finish_reason", [emission.finish_reason or "" for emission in emissions]))
            sequences = [part.stream.sequence for part in parts]
            tensors += [
                _integers("prompt_tokens", [len(sequence.prompt) for sequence in sequences]),
                _integers("cached_prompt_tokens", [sequence.reused for sequence in sequences]),
                _integers("generated_tokens", [sequence.generated for sequence in sequences]),
                _integers("drafted_tokens", [sequence.drafted for sequence in sequences]),
                _integers("accepted_draft_tokens", [sequence.accepted_drafts for sequence in sequences]),
            ]
        return pb_utils.InferenceResponse(tensors)

    def _poll_cancellations(self) -> None:
        now = time.monotonic()
        with self._wake:
            per_s = FULL_CANCEL_POLLS_PER_S if now - self._refused_at < FULL_S else CANCEL_POLLS_PER_S
            interval = max(CANCEL_POLL_S, len(self._answers) / per_s)
            answers = [(f, answer) for f, answer in self._answers.items() if now - answer.last_polled >= interval]
        for first, answer in answers:
            answer.last_polled = now
            if not first.cancelled and answer.sender.is_cancelled():
                self._coordinator.cancel(first)


def _strings(name: str, texts: Seq[str]) -> Any:
    return pb_utils.Tensor(name, np.array([[text.encode() for text in texts]], dtype=np.object_))


def _integers(name: str, values: Seq[int]) -> Any:
    return pb_utils.Tensor(name, np.array([values], np.int32))
