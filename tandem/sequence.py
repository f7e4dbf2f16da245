"""One request on its way through the decoding cycle."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

from tandem.detokenizer import DetokenizerStream
from tandem.errors import RequestError
from tandem.kv_cache import Retention
from tandem.sampling import SamplingParams
from tandem.step import MAX_DRAFTS, OpenSequence, Origin
from tandem.stopping import StopMatcher
from tandem.tracing import RequestTrace


@dataclass(slots=True)
class Emission:
    """What a sequence has to say since its last emission."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)  # tandem.step.Origin of each token
    text_lengths: list[int] = field(default_factory=list)  # characters of `text` that each token brought
    finish_reason: str | None = None  # "stop" or "length" on the last one

    def extend(self, later: Emission) -> None:
        """Append a later emission of the same sequence."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.log_probs += later.log_probs
        self.origins += later.origins
        self.text_lengths += later.text_lengths
        self.finish_reason = later.finish_reason


class Sink(Protocol):
    """Where a sequence's answer goes. Called from the decoding thread: it must not block."""

    def emit(self, sequence: Sequence, emission: Emission) -> None: ...

    def fail(self, sequence: Sequence, error: RequestError) -> None:
        """The request is over: nothing follows, on none of its sequences. Called once, with one of them."""
        ...


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids, cache position and text state of one answer; owned by the decoding thread once submitted.

    A request for several answers has one sequence for each. They end in success one by one, and fail together.
    """

    id: int
    prompt: Seq[int]
    sampling: SamplingParams
    max_tokens: int
    detokenizer: DetokenizerStream
    stopper: StopMatcher
    sink: Sink
    priority: int = 0  # higher is admitted first
    drafter: str = "auto"  # one of tandem.step.DRAFTERS
    max_drafts: int = MAX_DRAFTS  # draft tokens in one pass, at most
    salt: str = ""  # what is known of this sequence is used for others with the same salt only
    retention: Retention = field(default_factory=Retention)  # how its K and V are to be kept
    deadline: float = float("inf")  # on `time.monotonic`, seconds
    arrival: float = field(default_factory=time.monotonic)
    replica: int = 0  # of the target that it was given to
    trace: RequestTrace | None = None  # of the request; the first sequence of a group has it
    tokens: list[int] = field(init=False)  # prompt and answer
    group: list[Sequence] = field(init=False)  # all sequences of the request, the same list in each of them
    cached: int = 0  # how many of `tokens` the executor holds
    opened: bool = False  # the executor knows this sequence
    ended: bool = False  # its last token is out, or its request failed
    cancelled: bool = False  # set by another thread; read once per cycle
    last_token_at: float | None = None
    drafted: int = 0  # draft tokens that the target verified
    reused: int = 0  # prompt tokens that were not computed for it: found in the prefix cache when it was admitted
    accepted_drafts: int = 0  # of those, the ones that are in the answer

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.group = [self]

    @property
    def pending(self) -> int:
        """Tokens that the executor has not seen: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.cached

    @property
    def is_decoding(self) -> bool:
        """The executor has seen all but the newest token of an answer that has begun."""
        return self.pending == 1 and self.cached >= len(self.prompt)

    def opening(self) -> OpenSequence:
        """What the executor must be told before the first row."""
        return OpenSequence(
            self.id, len(self.prompt), self.sampling, self.drafter, self.max_drafts, self.salt, self.retention
        )

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    def forget_cache(self) -> None:
        """The executor holds nothing of this sequence any more (preempted, or a new process)."""
        self.cached = 0
        self.opened = False

    def replay(self, answer: Emission) -> None:
        """Have given this answer, which an equal request got before."""
        self.tokens += answer.token_ids
        self.reused = len(self.prompt)
        self.ended = True

    def accept(self, tokens: Seq[int], log_probs: Seq[float], origins: Seq[int]) -> Emission:
        """Take the tokens that the target chose; stop conditions are checked over every one of them.

        Tokens beyond the one that ends the sequence are dropped.
        """
        emission = Emission()
        for token, log_prob, origin in zip(tokens, log_probs, origins, strict=True):
            before = len(emission.text)
            self.tokens.append(token)
            emission.token_ids.append(token)
            emission.log_probs.append(log_prob)
            emission.origins.append(origin)
            self.accepted_drafts += origin != Origin.TARGET
            text, stopped = self.stopper.push(self.detokenizer.push((token,)))
            emission.text += text
            if stopped:
                emission.finish_reason = "stop"
            elif token in self.sampling.end_ids:
                emission.finish_reason = "stop"
                emission.text += self._rest()
            elif self.generated >= self.max_tokens:
                emission.finish_reason = "length"
                emission.text += self._rest()
            emission.text_lengths.append(len(emission.text) - before)
            if emission.finish_reason:
                break
        return emission

    def _rest(self) -> str:
        """Text held back for an unfinished character or stop word, now that nothing follows."""
        text, stopped = self.stopper.push(self.detokenizer.flush())
        return text if stopped else text + self.stopper.flush()
