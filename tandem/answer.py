"""The answer to one request on its way to the client: what is ready to be sent, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tandem.errors import RequestError
from tandem.request import GenerateRequest
from tandem.sequence import Emission, Sequence


@dataclass(slots=True)
class Stream:
    """One sequence of a request, and what of it waits to be sent."""

    sequence: Sequence
    index: int  # its place among the sequences of the request
    echo: str  # the prompt, if the client wants it in front of the answer
    cumulative_log_prob: float = 0.0
    emission: Emission = field(default_factory=Emission)
    has_unsent: bool = False
    last_sent: float = 0.0

    @property
    def ended(self) -> bool:
        return self.emission.finish_reason is not None

    def take_echo(self) -> str:
        """The prompt, once."""
        echo, self.echo = self.echo, ""
        return echo

    def take(self, now: float) -> Part:
        """What is unsent; it counts as sent `now`."""
        part = Part(self, self.emission)
        self.emission, self.has_unsent, self.last_sent = Emission(), False, now
        return part


class Part(NamedTuple):
    """What one sequence brings to a response."""

    stream: Stream
    emission: Emission


@dataclass(slots=True)
class Answer:
    """One request that still waits for responses."""

    sender: Any  # of Triton
    request: GenerateRequest
    streams: dict[Sequence, Stream]  # that have not ended
    error: RequestError | None = None
    last_polled: float = 0.0

    def take(self, now: float, interval: float) -> list[list[Part]]:
        """What may be sent now, by response. Streams that end are forgotten: nothing follows their end.

        Args:
            now: monotonic seconds.
            interval: seconds between two responses of one stream; the first and the last do not wait.
        """
        streams = list(self.streams.values())
        if not self.request.stream:
            if self.error is not None or not all(stream.ended for stream in streams):
                return []
            self.streams.clear()
            return [[stream.take(now) for stream in streams]]
        responses = []
        for stream in streams:
            ended = stream.ended
            if ended or (stream.has_unsent and (self.error is not None or now - stream.last_sent >= interval)):
                responses.append([stream.take(now)])
            if ended:
                del self.streams[stream.sequence]
        return responses
