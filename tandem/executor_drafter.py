"""A drafter that is an ordinary language model with an executor of its own, in this process or another.

Drafting k tokens is one step of k passes, so the draft model reuses everything that the target has: KV blocks,
rollback, sampling with the request's own noise. A draft that dies costs nothing but speed: nothing is proposed until it
is back.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tandem.decoding import ServerStopping, Target, TargetFailed
from tandem.speculation import Drafts, DraftState, GoesOn
from tandem.step import OpenSequence, RowStatus, StepRequest, StepRow

FEED_TOKENS = 512  # prompt tokens that the draft reads in one step
RETRY_S = 5.0  # between attempts to reload a draft that failed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Held:
    """What the draft has in its cache of one sequence: the target's first `committed` tokens, then its own."""

    opened: bool = False
    committed: int = 0
    drafts: list[int] = field(default_factory=list)


class ExecutorDrafter:
    """Implements `tandem.speculation.ModelDrafter`."""

    wants_features = False
    is_remote = True

    def __init__(self, draft: Target) -> None:
        self._draft = draft
        self._held: dict[int, _Held] = {}
        self._closes: list[int] = []
        self._epoch: int | None = None
        self._out_of_order = False
        self.failures = 0

    def propose(
        self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
    ) -> list[Drafts]:
        """See `ModelDrafter.propose`; all drafts come from one call, so `goes_on` is not asked."""
        if self._out_of_order:
            return [Drafts([], []) for _ in states]
        try:
            self._catch_up(states)
            return self._run(states, counts)
        except (TargetFailed, ServerStopping) as error:
            self._fail(error)
            return [Drafts([], []) for _ in states]

    def close(self, state: DraftState) -> None:
        """See `ModelDrafter.close`."""
        held = self._held.pop(state.opened.sequence, None)
        if held is not None and held.opened:
            self._closes.append(state.opened.sequence)

    def _catch_up(self, states: Sequence[DraftState]) -> None:
        """Feed long prompts in chunks, so that one step of the draft stays short."""
        for state in states:
            row, opens = self._row(state, 1)
            prompt = state.opened.prompt_length
            while len(row.tokens) > FEED_TOKENS or row.keep < prompt < row.keep + len(row.tokens):
                chunk = dataclasses.replace(row, choices=0)
                if not row.limit:  # no chunk goes on into the answer: see `tandem.step.chunk_length`
                    end = prompt - row.keep if row.keep < prompt else FEED_TOKENS
                    chunk = dataclasses.replace(chunk, tokens=row.tokens[: min(end, FEED_TOKENS)])
                self._step(StepRequest([chunk], opens), [state])
                kept = row.keep
                row, opens = self._row(state, 1)
                if row.keep <= kept:  # no memory
                    break

    def _run(self, states: Sequence[DraftState], counts: Sequence[int]) -> list[Drafts]:
        planned = [self._row(state, count) for state, count in zip(states, counts, strict=True)]
        rows, opens = [row for row, _ in planned], [opened for _, some in planned for opened in some]
        return self._step(StepRequest(rows, opens, passes=max(counts)), states)

    def _row(self, state: DraftState, count: int) -> tuple[StepRow, list[OpenSequence]]:
        """What the draft does not have of a sequence yet, and how much of what it has is still right."""
        held = self._held.setdefault(state.opened.sequence, _Held())
        history = state.sampling.history
        keep = min(held.committed, len(history) - 1)
        for draft in held.drafts:
            if keep >= len(history) - 1 or history[keep] != draft:
                break
            keep += 1
        opens = [] if held.opened else [_opening(state)]
        # What a new sequence begins with may be in the draft's prefix cache.
        limit = FEED_TOKENS if opens else 0
        return StepRow(state.opened.sequence, keep, history[keep:].tolist(), count, limit), opens

    def _step(self, request: StepRequest, states: Sequence[DraftState]) -> list[Drafts]:
        """Run a step and note what the draft holds afterwards; returns what it chose for each row."""
        closes, self._closes = self._closes, []
        result = self._draft.step(dataclasses.replace(request, closes=closes))
        if self._epoch not in (None, result.epoch):  # a new process: it knows none of the sequences
            self._held.clear()
        self._epoch = result.epoch
        drafts, chosen, at = [], result.chosen.tolist(), 0
        confidences = np.exp(result.log_probs).tolist()
        columns = (result.status, result.counts, result.lengths)
        rows = zip(request.rows, states, *(column.tolist() for column in columns), strict=True)
        for row, state, status, count, length in rows:
            tokens = chosen[at : at + count]
            drafts.append(Drafts(tokens, confidences[at : at + count]))
            at += count
            if status == RowStatus.UNKNOWN_SEQUENCE:
                self._held.pop(row.sequence, None)
            elif status == RowStatus.OK:
                # The newest token is never in the cache.
                own = tokens[:-1]
                self._held[row.sequence] = _Held(True, length - len(own), own)
            else:
                self._held[row.sequence] = _Held(True, min(length, len(state.sampling)), [])
        return drafts

    def _fail(self, error: Exception) -> None:
        """Give up drafting, and load the draft anew beside the target's work."""
        log.warning("the draft failed, nothing is drafted until it is loaded again: %s", error)
        self._out_of_order = True
        self.failures += 1
        self._held.clear()
        self._closes.clear()
        if not isinstance(error, ServerStopping):
            threading.Thread(target=self._restart, name="draft-restart", daemon=True).start()

    def _restart(self) -> None:
        while True:
            try:
                self._draft.restart()
                break
            except TargetFailed as error:
                log.error("the draft could not be loaded: %s", error)
                time.sleep(RETRY_S)
        self._epoch = None
        self._out_of_order = False


def _opening(state: DraftState) -> OpenSequence:
    sampling = dataclasses.replace(state.opened.sampling, log_probs=True)  # they tell how sure the draft is
    return dataclasses.replace(state.opened, sampling=sampling, drafter="none")
