"""The choice of the next token: `argmax(log p + gumbel(seed, position))` for each row of a batch.

p comes from the logits in this order:

1. repetition penalty r over prompt and answer: a logit is divided by r if positive, multiplied if negative
   (Keskar et al., "CTRL", 2019);
2. frequency and presence penalty over the answer: `logit - frequency * count - presence` for tokens that occur
   in it;
3. bad words: the last id of a word is masked (-inf) where the history ends with the ids before it;
4. end ids are masked while the answer has fewer than `min_length` tokens.
   The reported log-probability is the log-softmax at this point;
5. temperature: z = (logit - largest logit) * (1 / temperature), in float64. At temperature 0 the choice is
   the argmax;
6. top-k: the first k tokens, sorted by descending logit, then ascending id;
7. top-p: of those, the shortest prefix that has the share `top_p` of their probability; at least one token.
   Shares are compared as integers floor(exp(z) * 2**44) (`sampling_kernels.mass`), whose sums do not depend
   on the order of summation;
8. min-p: of those, the tokens at least `min_p` times as likely as the most likely one: z >= log(min_p).

Then the token with the largest z + noise is chosen (the sum of the exponentials need not be known), the
lowest id among equals; `tandem.noise` defines the noise. Steps 1 and 2 are done in float32, as `transformers`
does them. A row depends on nothing but its own logits, history, position and parameters: not on its
neighbours, nor on tokens beyond its position, so that it may verify a draft.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tandem import noise
from tandem.penalties import apply_penalties
from tandem.sampling_kernels import BLOCK, choose_rows

NO_TOKEN = -1  # chosen where a row of logits holds NaN or +inf, or where every token is masked
MIN_TEMPERATURE = 1e-300  # below, the temperature is taken for 0
MAX_VOCAB = 2**19  # beyond, sums of top-p shares might not fit into 63 bits

Int32s = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen. The defaults take the most likely token and change no logit.

    Raises:
        ValueError: a value is out of range; the message starts with its name.
    """

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0  # 0 .. 2**64 - 1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_length: int = 0  # generated tokens before an end id may be chosen
    end_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    log_probs: bool = False  # report the log-probability of chosen tokens

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf)
        _check("top_k", self.top_k, 0 <= self.top_k < 2**63)
        _check("top_p", self.top_p, 0 <= self.top_p <= 1)
        _check("min_p", self.min_p, 0 <= self.min_p <= 1)
        _check("seed", self.seed, 0 <= self.seed < 2**64)
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf)
        _check("presence_penalty", self.presence_penalty, math.isfinite(self.presence_penalty))
        _check("frequency_penalty", self.frequency_penalty, math.isfinite(self.frequency_penalty))
        _check("min_length", self.min_length, self.min_length >= 0)
        _check("bad_words", self.bad_words, all(self.bad_words))


def _check(name: str, value: object, valid: bool) -> None:
    if not valid:
        raise ValueError(f"{name}: {value!r} is out of range")


class SamplingState:
    """Parameters and token history of one sequence."""

    __slots__ = (
        "_bad_words",
        "_end_ids",
        "_history",
        "_is_argmax",
        "_length",
        "_penalties",
        "_plain",
        "_reals",
        "params",
        "prompt_length",
    )

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        """`prompt_length`: how many of the first tokens are prompt; they are appended like all others."""
        self.params = params
        self.prompt_length = prompt_length
        self._length = 0
        self._history = np.empty(max(64, prompt_length + 64), np.int32)
        log_min_p = float(noise.log(np.array([params.min_p]))[0]) if params.min_p > 2.0**-1000 else -math.inf
        scale = 1.0 / params.temperature if params.temperature >= MIN_TEMPERATURE else 0.0
        self._reals = (scale, params.top_p, log_min_p)
        self._penalties = np.array(
            [params.repetition_penalty, params.presence_penalty, params.frequency_penalty], np.float32
        )
        self._end_ids = np.array(params.end_ids, np.int32)
        ids = [token for word in params.bad_words for token in word]
        starts = np.cumsum([0, *(len(word) for word in params.bad_words)])
        self._bad_words = (np.array(ids, np.int32), starts.astype(np.int32))
        self._plain = self._penalties.tolist() == [1.0, 0.0, 0.0] and not params.bad_words
        self._is_argmax = self._plain and scale == 0.0 and not params.log_probs

    def __len__(self) -> int:
        return self._length

    @property
    def history(self) -> Int32s:
        """The tokens so far, a view."""
        return self._history[: self._length]

    def append(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end of the history."""
        end = self._length + len(tokens)
        if end > len(self._history):
            grown = np.empty(max(end, 2 * len(self._history)), np.int32)
            grown[: self._length] = self.history
            self._history = grown
        self._history[self._length : end] = tokens
        self._length = end

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= length <= self._length:
            raise ValueError(f"length: cannot keep {length} of {self._length} tokens")
        self._length = length


class Choice(NamedTuple):
    """What a row of logits is for: the token at `position` of the sequence, after its first `position` tokens."""

    state: SamplingState
    position: int


_NO_IDS = np.empty(0, np.int32)


class _Scratch(threading.local):
    """Buffers for one vocabulary size, per thread."""

    def __init__(self) -> None:
        self.resize(1)

    def resize(self, vocab: int) -> None:
        self.vocab = vocab
        blocks = -(-vocab // BLOCK)
        self.counts = np.zeros(vocab, np.int32)
        self.work = np.empty((0, vocab), np.float32)
        # Largest key per block, mass per token and per block, candidates (key, id, mass), histogram.
        self.arrays: tuple[Any, ...] = (
            np.empty(blocks, np.int32),
            np.empty(vocab, np.int64),
            np.empty(blocks, np.int64),
            (np.empty(vocab, np.int32), np.empty(vocab, np.int32), np.empty(vocab, np.int64)),
            np.empty(256, np.int64),
        )

    def rows(self, count: int) -> Floats:
        if len(self.work) < count:
            self.work = np.empty((count, self.vocab), np.float32)
        return self.work


_scratch = _Scratch()


def choose(logits: Floats, choices: Sequence[Choice]) -> tuple[Int32s, Floats]:
    """Choose a token for every row of logits.

    Args:
        logits: float32 [n, vocab]; -inf masks a token. Not changed.
        choices: n of them.

    Returns:
        Token ids, int32 [n], and their natural log-probabilities, float32 [n], 0 for sequences that did not ask.
        The id is NO_TOKEN where the logits of a row hold NaN or +inf or mask every token; the other rows are not
        affected.

    Raises:
        ValueError: shapes contradict each other, or a position is beyond the history.
    """
    count, vocab = logits.shape
    if count != len(choices) or not 0 < vocab <= MAX_VOCAB:
        raise ValueError(f"logits: shape {logits.shape} does not fit {len(choices)} choices")
    logits = np.require(logits, np.float32, ["C", "W"])
    if vocab != _scratch.vocab:
        _scratch.resize(vocab)
    tokens, log_probs = np.empty(count, np.int32), np.zeros(count, np.float32)
    masked: list[tuple[int, Int32s, Floats]] = []
    others: list[int] = []
    for row, (state, position) in enumerate(choices):
        if not 0 <= position <= len(state):
            raise ValueError(f"position: {position} is beyond the history of {len(state)} tokens")
        if state._is_argmax:
            largest = int(logits[row].argmax())  # NaN counts as the largest
            if largest not in state.params.end_ids or not _is_unfinished(state, position):
                tokens[row] = largest if math.isfinite(logits[row, largest]) else NO_TOKEN
                continue
        if state._plain and _is_unfinished(state, position):
            # In place, and put back below: copying the row would cost more than choosing.
            ids = state._end_ids[(state._end_ids >= 0) & (state._end_ids < vocab)]
            masked.append((row, ids, logits[row, ids]))
            logits[row, ids] = -np.inf
        others.append(row)
    if others:
        rows = logits if len(others) == count else logits[others]
        tokens[others], log_probs[others] = _choose(rows, [choices[row] for row in others])
    for row, ids, values in masked:
        logits[row, ids] = values
    return tokens, log_probs


def _is_unfinished(state: SamplingState, position: int) -> bool:
    """Whether the end ids are masked there."""
    params = state.params
    return position - state.prompt_length < params.min_length and bool(params.end_ids)


def _choose(logits: Floats, choices: Sequence[Choice]) -> tuple[Int32s, Floats]:
    """The same for rows that need more than the largest logit; end ids of plain rows are masked already."""
    count = len(choices)
    slots = np.full(count, -1, np.int32)
    processed: list[tuple[int, Choice]] = []
    for row, choice in enumerate(choices):
        if not choice.state._plain:
            slots[row] = len(processed)
            processed.append((row, choice))
    work = _scratch.rows(len(processed))
    for slot, (row, (state, position)) in enumerate(processed):
        work[slot] = logits[row]
        apply_penalties(
            work[slot],
            state._history[:position],
            state.prompt_length,
            state._penalties,
            state._bad_words,
            state._end_ids if _is_unfinished(state, position) else _NO_IDS,
            _scratch.counts,
        )
    reals, integers, seeds = kernel_arguments(choices)
    tokens, log_probs = np.empty(count, np.int32), np.empty(count, np.float32)
    choose_rows(
        logits.view(np.int32), work.view(np.int32), slots, reals, integers, seeds, _scratch.arrays, (tokens, log_probs)
    )
    return tokens, log_probs


class KernelArguments(NamedTuple):
    """Parameters of rows as arrays, for kernels; columns as `sampling_kernels.choose_rows` says."""

    reals: npt.NDArray[np.float64]  # [n, 3]: 1 / temperature (0: greedy), top_p, log(min_p)
    integers: npt.NDArray[np.int64]  # [n, 3]: top_k, position, 1 if the log-probability is wanted
    seeds: npt.NDArray[np.uint64]  # [n]


def kernel_arguments(choices: Sequence[Choice]) -> KernelArguments:
    """What the choice needs besides the logits, whose penalties and masks are not part of this."""
    params = [state.params for state, _ in choices]
    integers = [(p.top_k, position, p.log_probs) for p, (_, position) in zip(params, choices, strict=True)]
    return KernelArguments(
        np.array([state._reals for state, _ in choices], np.float64).reshape(-1, 3),
        np.array(integers, np.int64).reshape(-1, 3),
        np.array([p.seed for p in params], np.uint64),
    )


class Edits(NamedTuple):
    """What penalties and masks do to a row: the tokens they concern, each once."""

    tokens: Int32s
    counts: Int32s  # how often in the answer; -1: masked
    penalties: Floats  # [3]: repetition, presence, frequency


def edits(choice: Choice, vocab: int) -> Edits:
    """Steps 1 to 4 of this module for one row, as entries for a kernel."""
    state, position = choice
    params = state.params
    history = state._history[:position]
    counts: dict[int, int] = {}
    if state._penalties.tolist() != [1.0, 0.0, 0.0]:
        counts = dict.fromkeys(np.unique(history).tolist(), 0)
        found, times = np.unique(history[state.prompt_length :], return_counts=True)
        counts.update(zip(found.tolist(), times.tolist(), strict=True))
    for *before, last in params.bad_words:
        if len(before) <= len(history) and history[len(history) - len(before) :].tolist() == before:
            counts[last] = -1
    if _is_unfinished(state, position):
        counts.update(dict.fromkeys(params.end_ids, -1))
    known = {token: count for token, count in counts.items() if 0 <= token < vocab}
    return Edits(np.array(list(known), np.int32), np.array(list(known.values()), np.int32), state._penalties)


def warm_up(vocab: int) -> None:
    """Compile everything, or load it from the cache, before the first step needs it: about 7 s or 0.3 s."""
    params = SamplingParams(temperature=1.0, top_k=2, top_p=0.5, repetition_penalty=2.0, log_probs=True)
    state = SamplingState(params, 1)
    state.append([0])
    choose(np.zeros((1, vocab), np.float32), [Choice(state, 1)])
