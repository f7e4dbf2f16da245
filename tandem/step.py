"""The contract between the coordinator and an executor: what one step is asked, and what it answers.

Plain arrays, which `tandem.wire` packs to cross a process boundary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.kv_cache import Retention
from tandem.sampling import SamplingParams

MAX_PASSES = 100
MAX_DRAFTS = 16  # draft tokens of one sequence in one pass

Arrays = dict[str, npt.NDArray[Any]]


DRAFTERS = ("auto", "none", "suffix", "draft")  # auto: whichever promises most, or none


def chunk_length(pending: int, prompt_left: int, most: int) -> int:
    """How many tokens of a sequence to compute in a step: a chunk of the prompt, or of what is known of the answer.

    No chunk of a longer prompt has a single token: kernels for one token per row round differently, and the answer
    must not change. None goes on into the answer, whose tokens are rows of their own: OpenVINO computes those wrongly
    beside a row that has the tokens before them.

    Args:
        pending: tokens that are known and not computed.
        prompt_left: how many of those are prompt; 0 or less if some of the answer is computed already.
        most: tokens that the step has room for; a sequence that is decoding gets its token in any case.
    """
    if pending == 1 or prompt_left == 1:
        return 1
    if prompt_left <= 0:  # fed again after a preemption
        return max(0, min(pending, most))
    count = min(prompt_left, most)
    if prompt_left - count == 1:
        return prompt_left
    return count if count > 1 else 0


class Origin(IntEnum):
    """Who proposed a chosen token. The choice is the target's in any case."""

    TARGET = 0  # nobody: the target's own token behind the accepted drafts
    SUFFIX = 1
    DRAFT = 2


class RowStatus(IntEnum):
    OK = 0
    OUT_OF_BLOCKS = 1  # the row did not run; the sequence stands where `keep` put it
    UNKNOWN_SEQUENCE = 2  # the row did not run; the coordinator must open the sequence and feed it from the start


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """What the executor must know of a sequence before its first row."""

    sequence: int
    prompt_length: int  # tokens that are prompt: penalties tell them from generated ones
    sampling: SamplingParams
    drafter: str = "none"  # one of DRAFTERS
    max_drafts: int = MAX_DRAFTS  # draft tokens in one pass, at most
    salt: str = ""  # what is known of other salts is not used: texts to draft from, K and V
    retention: Retention = field(default_factory=Retention)


@dataclass(frozen=True, slots=True)
class StepRow:
    """One sequence in one step."""

    sequence: int
    keep: int  # tokens of the sequence to keep in the cache; fewer than it holds means rollback
    tokens: Sequence[int]  # new token ids, at least one
    choices: int  # how many tokens may be chosen after them, over all passes; 0 for a chunk that is not the last
    # Of a sequence that holds nothing yet, `tokens` are all that are known: what is in the prefix cache is not
    # computed, and of the rest at most so many; nothing is chosen unless they reach the end. 0: the row is as it is.
    limit: int = 0


@dataclass(frozen=True, slots=True)
class StepRequest:
    """Closes are done first, then opens, then rows in order, so that earlier rows win the last free blocks."""

    rows: Sequence[StepRow] = ()
    opens: Sequence[OpenSequence] = ()
    closes: Sequence[int] = ()
    # Rows that chose a token go on with it in further forward passes, until there were `passes`, or they have their
    # `choices`, or choose an end id: several tokens for one call across process boundaries. Each pass of a row may
    # verify drafts, and so choose several tokens itself.
    passes: int = 1
    committed: Sequence[int] = ()  # of each of `closes`, the tokens that others may have; empty: none of any
    reset: bool = False  # forget what the prefix cache keeps

    def to_arrays(self) -> Arrays:
        """Flatten into the arrays of the wire format; see `from_arrays` for names and shapes."""
        arrays: Arrays = {
            "rows": np.array([(r.keep, len(r.tokens), r.choices, r.limit) for r in self.rows], np.int32).reshape(-1, 4),
            "sequences": np.array([r.sequence for r in self.rows], np.int64),
            "tokens": np.array([token for r in self.rows for token in r.tokens], np.int32),
            "passes": np.array([self.passes], np.int32),
        }
        if self.opens:
            described = json.dumps([asdict(opened) for opened in self.opens])
            arrays["opens"] = np.frombuffer(described.encode(), np.uint8)
        if self.closes:
            committed = self.committed or [0] * len(self.closes)
            arrays["closes"] = np.array([self.closes, committed], np.int64)
        if self.reset:
            arrays["reset"] = np.ones(1, np.uint8)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> StepRequest:
        """Read the wire format.

        Args:
            arrays: `sequences` int64 [R]; `rows` int32 [R, 4], columns keep, token count, choice count, limit; `tokens`
                int32 [sum of token counts]; `passes` int32 [1]; optional `opens` uint8, a JSON list; optional
                `closes` int64 [C].

        Raises:
            ValueError: the shapes contradict each other.
        """
        shape, tokens = arrays["rows"], arrays["tokens"].tolist()
        if shape.ndim != 2 or shape.shape[1] != 4 or len(shape) != len(arrays["sequences"]):
            raise ValueError(f"rows {shape.shape} must be [R, 4] and sequences {arrays['sequences'].shape} [R]")
        if int(shape[:, 1].sum()) != len(tokens):
            raise ValueError(f"tokens holds {len(tokens)} ids, rows announce {int(shape[:, 1].sum())}")
        rows, at = [], 0
        for sequence, (keep, count, choices, limit) in zip(arrays["sequences"].tolist(), shape.tolist(), strict=True):
            if count < 1 or choices < 0 or keep < 0 or limit < 0 or (limit and keep):
                raise ValueError(
                    f"sequence {sequence}: keep {keep}, {count} tokens, {choices} choices, limit {limit}: no valid row"
                )
            rows.append(StepRow(sequence, keep, tokens[at : at + count], choices, limit))
            at += count
        opens = []
        for opened in json.loads(arrays["opens"].tobytes()) if "opens" in arrays else []:
            sampling = opened["sampling"]
            sampling["end_ids"] = tuple(sampling["end_ids"])
            sampling["bad_words"] = tuple(tuple(word) for word in sampling["bad_words"])
            retention = Retention(**opened["retention"])
            opens.append(OpenSequence(**{**opened, "sampling": SamplingParams(**sampling), "retention": retention}))
        passes = int(arrays["passes"][0])
        if not 1 <= passes <= MAX_PASSES:
            raise ValueError(f"passes is {passes}; it must be between 1 and {MAX_PASSES}")
        closes, committed = arrays["closes"].tolist() if "closes" in arrays else ([], ())
        return cls(rows, opens, closes, passes, committed, "reset" in arrays)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The answer to one step. All fields are arrays, so that it crosses process boundaries as it is."""

    epoch: int  # another number than last time: a new process, which knows none of the old sequences
    status: npt.NDArray[np.int32]  # [R] RowStatus
    lengths: npt.NDArray[np.int32]  # [R] tokens of the sequence in the cache now
    cached: npt.NDArray[np.int32]  # [R] tokens of this row that were found in the prefix cache, not computed
    counts: npt.NDArray[np.int32]  # [R] tokens chosen for the row, over all passes
    drafted: npt.NDArray[np.int32]  # [R] draft tokens that were verified for the row
    chosen: npt.NDArray[np.int32]  # [sum of counts] the target's own token per position
    origins: npt.NDArray[np.uint8]  # like chosen: Origin
    log_probs: npt.NDArray[np.float32]  # like chosen; 0 for sequences that did not ask
    pass_rows: npt.NDArray[np.int32]  # [passes that ran] rows in each
    positions: npt.NDArray[np.int32]  # [MAX_DRAFTS, 2] drafts at this place of their run: verified, accepted
    cache: npt.NDArray[np.int64]  # of the prefix cache, since the process began: see tandem.cache_counts
    tiers: npt.NDArray[np.int64]
    free_blocks: int
    total_blocks: int
    block_size: int
    propose_s: float  # seconds in the drafters
    forward_s: float  # seconds in the engine
    sampling_s: float  # seconds in the choice and acceptance of tokens

    def to_arrays(self) -> Arrays:
        """Flatten into the arrays of the wire format."""
        return {
            "epoch": np.array([self.epoch], np.int64),
            "row_state": np.array([self.status, self.lengths, self.cached, self.counts, self.drafted], np.int32),
            "chosen": self.chosen,
            "origins": self.origins,
            "log_probs": self.log_probs,
            "pass_rows": self.pass_rows,
            "positions": self.positions,
            "capacity": np.array([self.free_blocks, self.total_blocks, self.block_size], np.int32),
            "seconds": np.array([self.propose_s, self.forward_s, self.sampling_s], np.float32),
            "cache": self.cache,
            "tiers": self.tiers,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> StepResult:
        """Read the wire format that `to_arrays` writes."""
        state, capacity, seconds = arrays["row_state"], arrays["capacity"].tolist(), arrays["seconds"].tolist()
        return cls(
            int(arrays["epoch"][0]), state[0], state[1], state[2], state[3], state[4], arrays["chosen"],
            arrays["origins"], arrays["log_probs"], arrays["pass_rows"], arrays["positions"], arrays["cache"],
            arrays["tiers"], *capacity, *seconds,
        )  # fmt: skip
