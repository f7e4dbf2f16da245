"""Which sequences run in the next step, and with how many tokens.

Continuous batching: a waiting sequence joins at the next step. Chunked prefill: beside decoding sequences a step
carries at most `mixed_step_tokens` prompt tokens, so a long prompt delays each token of the others by a bounded time.
When KV blocks run out the youngest sequence gives up its blocks and is fed again later (recompute preemption, as in
vLLM, Kwon et al. 2023).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem.sequence import Sequence
from tandem.step import StepRequest, StepRow, chunk_length


@dataclass(slots=True)
class Capacity:
    """KV blocks of the executor, as its last answer said."""

    free_blocks: int
    total_blocks: int
    block_size: int

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


@dataclass(slots=True)
class Plan:
    """One step: `batch[i]` is the sequence of `request.rows[i]`."""

    batch: list[Sequence]
    request: StepRequest
    preempted: list[Sequence] = field(default_factory=list)


def _seniority(sequence: Sequence) -> tuple[int, float, int]:
    return (-sequence.priority, sequence.arrival, sequence.id)


class Scheduler:
    """Decides only; the decoding loop runs the plan. Used from one thread."""

    def __init__(self, max_running: int, max_step_tokens: int, mixed_step_tokens: int, max_passes: int = 1) -> None:
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.mixed_step_tokens = mixed_step_tokens
        self.max_passes = max_passes
        self.waiting: list[Sequence] = []  # by seniority
        self.running: list[Sequence] = []  # by seniority
        self.closing: dict[int, int] = {}  # sequences that ended -> tokens they hold until the next step
        self._committed: dict[int, int] = {}  # of those, the tokens that others may have

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_seniority)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; its blocks are freed with the next step."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.close(sequence)

    def drop(self, is_over: Callable[[Sequence], bool]) -> list[Sequence]:
        """Remove and return the sequences for which `is_over` holds (cancelled, timed out)."""
        over = [sequence for sequence in (*self.running, *self.waiting) if is_over(sequence)]
        for sequence in over:
            self.remove(sequence)
        return over

    def forget_caches(self) -> None:
        """The executor is a new process: feed every sequence again."""
        self.closing.clear()
        self._committed.clear()
        for sequence in self.running:
            sequence.forget_cache()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.closing)

    def plan(self, capacity: Capacity) -> Plan:
        """Plan the next step.

        Args:
            capacity: as of the executor's last answer. Blocks of sequences closed since then count as free.
        """
        planning = _Planning(self, capacity)
        planning.continue_running()
        planning.admit_waiting()
        return planning.finish()

    def close(self, sequence: Sequence) -> None:
        """The next step frees what the executor holds of a sequence."""
        if sequence.opened:
            self.closing[sequence.id] = sequence.cached
            self._committed[sequence.id] = min(sequence.cached, len(sequence.tokens))
            sequence.forget_cache()

    def take_closes(self) -> tuple[list[int], list[int]]:
        """Sequences to close in the step that is planned, and the tokens of each that others may have."""
        closes, committed = list(self.closing), list(self._committed.values())
        self.closing, self._committed = {}, {}
        return closes, committed


class _Planning:
    """The state of making one plan."""

    def __init__(self, scheduler: Scheduler, capacity: Capacity) -> None:
        self._scheduler = scheduler
        self._capacity = capacity
        self._free = capacity.free_blocks + sum(map(capacity.blocks_for, scheduler.closing.values()))
        self._rows: dict[Sequence, StepRow] = {}
        self._preempted: list[Sequence] = []
        decoding = any(sequence.is_decoding for sequence in scheduler.running)
        self._prompt_tokens = scheduler.mixed_step_tokens if decoding else scheduler.max_step_tokens

    def _blocks(self, sequence: Sequence, tokens: int) -> int:
        """More blocks for `tokens` more tokens."""
        needed = self._capacity.blocks_for(sequence.cached + tokens)
        return needed - self._capacity.blocks_for(sequence.cached)

    def _may_grow(self, sequence: Sequence) -> bool:
        longest = self._capacity.blocks_for(len(sequence.prompt) + sequence.max_tokens)
        return longest > self._capacity.blocks_for(len(sequence.tokens))

    def _next_tokens(self, sequence: Sequence) -> int:
        """How many tokens the sequence's row has."""
        return chunk_length(sequence.pending, len(sequence.prompt) - sequence.cached, self._prompt_tokens)

    def _add_row(self, sequence: Sequence, count: int) -> None:
        left = sequence.max_tokens - sequence.generated
        if sequence.opened:
            tokens = sequence.tokens[sequence.cached : sequence.cached + count]
            row = StepRow(sequence.id, sequence.cached, tokens, left if count == sequence.pending else 0)
        else:  # all of it, because the executor may find some in its prefix cache
            row = StepRow(sequence.id, 0, sequence.tokens[:], left, limit=count)
        self._rows[sequence] = row
        self._free -= self._blocks(sequence, count)
        if sequence.pending > 1:
            self._prompt_tokens -= count

    def continue_running(self) -> None:
        """Every decoding sequence gets its token, prefilling ones share the prompt tokens."""
        for sequence in list(self._scheduler.running):
            if sequence not in self._scheduler.running:  # preempted for one before it
                continue
            count = self._next_tokens(sequence)
            if count and self._make_room(sequence, count):
                self._add_row(sequence, count)

    def _make_room(self, sequence: Sequence, count: int) -> bool:
        """Preempt from the youngest until `count` tokens fit; False if `sequence` itself had to go."""
        running = self._scheduler.running
        while self._blocks(sequence, count) > self._free:
            youngest = running.pop()
            self._free += self._capacity.blocks_for(youngest.cached)
            self._scheduler.close(youngest)
            self._scheduler.add(youngest)
            self._preempted.append(youngest)
            if youngest is sequence:
                return False
        return True

    def admit_waiting(self) -> None:
        """Admit in order of seniority while slots, prompt tokens and blocks for the whole of it are there."""
        scheduler = self._scheduler
        if self._preempted:
            return
        # Blocks that running prefills will still take, and one for each running sequence that may grow into another.
        promised = sum(
            self._blocks(sequence, sequence.pending) for sequence in scheduler.running if sequence not in self._rows
        ) + sum(
            self._capacity.blocks_for(len(sequence.tokens))
            - self._capacity.blocks_for(row.keep + (row.limit or len(row.tokens)))
            for sequence, row in self._rows.items()
        )
        while scheduler.waiting and len(scheduler.running) < scheduler.max_running and self._prompt_tokens > 0:
            sequence = scheduler.waiting[0]
            headroom = promised + sum(map(self._may_grow, scheduler.running))
            if self._blocks(sequence, sequence.pending) > self._free - headroom:
                return
            count = self._next_tokens(sequence)
            if not count:
                return
            promised += self._blocks(sequence, sequence.pending) - self._blocks(sequence, count)
            scheduler.waiting.pop(0)
            insort(scheduler.running, sequence, key=_seniority)
            self._add_row(sequence, count)

    def _passes(self) -> int:
        """Several passes in one call, if all sequences are decoding and none waits to join.

        A row that finds no blocks for a further pass ends its call there.
        """
        if self._scheduler.waiting or not self._rows or not all(s.is_decoding for s in self._rows):
            return 1
        return min(self._scheduler.max_passes, max(row.choices for row in self._rows.values()))

    def finish(self) -> Plan:
        batch = list(self._rows)
        opens = [s.opening() for s in batch if not s.opened]
        for sequence in batch:
            sequence.opened = True
        closes, committed = self._scheduler.take_closes()
        request = StepRequest(list(self._rows.values()), opens, closes, self._passes(), committed)
        return Plan(batch, request, self._preempted)
