"""What comes back: chunks of a stream, the whole result, and when each part arrived."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2

from client.errors import ServerError, error_from_message

ORIGINS = ("target", "suffix", "draft")  # the values of the tensor output_origins


@dataclass(frozen=True, slots=True)
class Chunk:
    """One response of a stream.

    Attributes:
        text: the new text; the chunks of a stream joined are the whole text.
        sequence_index: which answer it belongs to, where several were asked for.
        token_ids: ids of the tokens in this response, with `return_token_ids`.
        log_probs: natural log-probabilities of those tokens, with `return_log_probs`.
        cum_log_prob: sum over all tokens so far, with `return_log_probs`.
        origins: who proposed each of those tokens, "target" where nobody did; with `return_token_ids`.
        text_lengths: characters that each of those tokens added to `text`; what was held back (half a character, the
            beginning of a stop word) counts for the token that released it. With `return_token_ids`.
        finish_reason: "stop" or "length", on the last response only, as are the five counts.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    cum_log_prob: float | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    drafted_tokens: int | None = None
    accepted_draft_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    origins: tuple[str, ...] | None = None
    text_lengths: tuple[int, ...] | None = None
    sequence_index: int = 0

    def pieces(self) -> list[tuple[str, str]]:
        """The text in pieces, each with who proposed its token; joined they are the text.

        A prompt in front of the answer, and all text without `return_token_ids`, is "target".
        """
        lengths = self.text_lengths or ()
        origins = self.origins or () if lengths else ()
        at = len(self.text) - sum(lengths)
        pieces = [(self.text[:at], ORIGINS[0])]
        for length, origin in zip(lengths, origins, strict=True):
            pieces.append((self.text[at : at + length], origin))
            at += length
        return [piece for piece in pieces if piece[0]]


@dataclass(slots=True)
class Timing:
    """When things happened, seen from the client, in seconds.

    `arrivals_s` holds the time of every response, counted from the request. Where one response carries
    several tokens, the gap before it is the gap of all of them.
    """

    started: float = field(default_factory=time.perf_counter)
    ttft_s: float | None = None  # to the first response that carries text or ends the request
    arrivals_s: list[float] = field(default_factory=list)
    generated_tokens: int | None = None

    @property
    def total_s(self) -> float:
        """From the request to the newest response."""
        return self.arrivals_s[-1] if self.arrivals_s else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens over the whole time, prefill included; None before the end."""
        if self.generated_tokens is None or not self.arrivals_s:
            return None
        return self.generated_tokens / self.total_s

    @property
    def inter_token_s(self) -> list[float]:
        """Gaps between successive responses."""
        return [after - before for before, after in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer; the fields are those of `Chunk`, of all tokens together."""

    text: str
    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    timing: Timing
    token_ids: tuple[int, ...] | None = None
    log_probs: tuple[float, ...] | None = None
    cum_log_prob: float | None = None
    drafted_tokens: int = 0
    accepted_draft_tokens: int = 0
    cached_prompt_tokens: int = 0  # of the prompt, those that were not computed anew
    origins: tuple[str, ...] | None = None


class Collector:
    """Reads the streamed responses of one request in order and sums them up, for each answer that was asked for."""

    def __init__(self, sequences: int = 1) -> None:
        self._timings = [Timing() for _ in range(sequences)]
        self._chunks: list[list[Chunk]] = [[] for _ in range(sequences)]

    @property
    def timing(self) -> Timing:
        """Of the first answer."""
        return self._timings[0]

    def read(self, response: service_pb2.ModelStreamInferResponse) -> Chunk:
        """Parse one response.

        Raises:
            ServerError: the response is an error.
        """
        if response.error_message:
            raise error_from_message(response.error_message)
        chunk = parse_chunk(response.infer_response)
        timing = self._timings[chunk.sequence_index]
        now = time.perf_counter() - timing.started
        timing.arrivals_s.append(now)
        if timing.ttft_s is None and (chunk.text or chunk.finish_reason):
            timing.ttft_s = now
        if chunk.finish_reason is not None:
            timing.generated_tokens = chunk.generated_tokens
        self._chunks[chunk.sequence_index].append(chunk)
        return chunk

    @property
    def finished(self) -> bool:
        """Whether every answer has come to its end."""
        return all(chunks and chunks[-1].finish_reason is not None for chunks in self._chunks)

    def check_end(self) -> None:
        """Call it when the stream has ended without an error.

        Raises:
            ServerError: the last response never came.
        """
        if not self.finished:
            raise ServerError("the stream ended before the last response", "DATA_LOSS")

    @property
    def text(self) -> str:
        """The text of the first answer so far."""
        return "".join(chunk.text for chunk in self._chunks[0])

    def result(self) -> Result:
        """The first answer, once the last response has been read.

        Raises:
            ServerError: the last response never came.
        """
        return self.results()[0]

    def results(self) -> list[Result]:
        """All answers, by their index, once the last response has been read.

        Raises:
            ServerError: the last response never came.
        """
        self.check_end()
        return [self._result(chunks, timing) for chunks, timing in zip(self._chunks, self._timings, strict=True)]

    @staticmethod
    def _result(chunks: Sequence[Chunk], timing: Timing) -> Result:
        last = chunks[-1]
        ids = [token for chunk in chunks for token in chunk.token_ids or ()]
        log_probs = [value for chunk in chunks for value in chunk.log_probs or ()]
        return Result(
            text="".join(chunk.text for chunk in chunks),
            finish_reason=last.finish_reason or "",
            prompt_tokens=last.prompt_tokens or 0,
            generated_tokens=last.generated_tokens or 0,
            timing=timing,
            token_ids=None if last.token_ids is None else tuple(ids),
            log_probs=None if last.log_probs is None else tuple(log_probs),
            cum_log_prob=last.cum_log_prob,
            drafted_tokens=last.drafted_tokens or 0,
            accepted_draft_tokens=last.accepted_draft_tokens or 0,
            cached_prompt_tokens=last.cached_prompt_tokens or 0,
            origins=None if last.origins is None else tuple(o for chunk in chunks for o in chunk.origins or ()),
        )


def parse_chunk(response: service_pb2.ModelInferResponse) -> Chunk:
    """Read the raw tensors of a response with one answer; about four times cheaper than tritonclient's `as_numpy`."""
    raw = {output.name: data for output, data in zip(response.outputs, response.raw_output_contents, strict=True)}
    ids, log_probs = raw.get("output_ids"), raw.get("output_log_probs")
    origins, lengths = raw.get("output_origins"), raw.get("output_text_lengths")
    cum_log_prob, finish_reason = raw.get("cum_log_probs"), raw.get("finish_reason")
    return Chunk(
        text=_string(raw.get("text_output", b"")),
        token_ids=None if ids is None else struct.unpack(f"<{len(ids) // 4}i", ids),
        log_probs=None if log_probs is None else struct.unpack(f"<{len(log_probs) // 4}f", log_probs),
        cum_log_prob=struct.unpack("<f", cum_log_prob)[0] if cum_log_prob else None,
        finish_reason=_string(finish_reason) if finish_reason else None,
        prompt_tokens=_integer(raw.get("prompt_tokens")),
        generated_tokens=_integer(raw.get("generated_tokens")),
        drafted_tokens=_integer(raw.get("drafted_tokens")),
        accepted_draft_tokens=_integer(raw.get("accepted_draft_tokens")),
        cached_prompt_tokens=_integer(raw.get("cached_prompt_tokens")),
        origins=None if origins is None else tuple(ORIGINS[origin] for origin in origins),
        text_lengths=None if lengths is None else struct.unpack(f"<{len(lengths) // 4}i", lengths),
        sequence_index=_integer(raw.get("sequence_index")) or 0,
    )


def _string(data: bytes) -> str:
    # Four bytes of length, then the text, which is UTF-8 up to what the model itself wrote.
    return data[4:].decode("utf-8", "replace")


def _integer(data: bytes | None) -> int | None:
    return int.from_bytes(data, "little", signed=True) if data else None
