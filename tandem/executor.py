"""The executor of `target` and `draft`: runs steps on one engine.

It owns the KV memory, the sampling state of every sequence, and the decoding cycle: propose, verify, accept, roll
back. Text and scheduling are the coordinator's. The cycle is here and not there because a call between the two
processes costs 1 to 2 ms, which is a tenth of a step; so one call runs several cycles, and one more runs ahead while
the coordinator works: if what it asks for next is that, it is there already, else it is rolled back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from tandem import ranges
from tandem.cache_counts import cache_array
from tandem.engines import ChoosingEngine, Engine, Row
from tandem.executor_rows import Call, HeldSequence, Running
from tandem.kv_cache import BlockTable, OutOfBlocks
from tandem.prefix_index import root_key
from tandem.run_ahead import RunAhead
from tandem.sampling import NO_TOKEN, Choice, Floats, Int32s, SamplingParams, SamplingState, choose, warm_up
from tandem.sequence_cache import SequenceCache, cache_of
from tandem.speculation import DraftState, Proposal, Speculation, agreement
from tandem.step import MAX_DRAFTS, OpenSequence, Origin, RowStatus, StepRequest, StepResult, StepRow, chunk_length

WARM_UP_TOKENS = 64
PREFILL_TOKENS = 32  # a pass with at least so many prompt tokens tells what one costs


class Executor:
    """Runs steps on one engine; not thread-safe, as one Triton model instance is not."""

    def __init__(
        self, engine: Engine, epoch: int, speculation: Speculation | None = None, kv_cache: SequenceCache | None = None
    ) -> None:
        """`kv_cache` is that of this engine's memory; by default one that reuses everything, without further tiers."""
        self.engine = engine
        self._choosing = engine if isinstance(engine, ChoosingEngine) and engine.chooses else None
        self.epoch = epoch
        self.speculation = speculation
        self.kv_cache = kv_cache or cache_of(engine)
        self._sequences: dict[int, HeldSequence] = {}
        self._continuing: list[Running] = []  # rows that could go on after the last call
        self._ahead = RunAhead(self.kv_cache)

    def step(self, request: StepRequest) -> StepResult:
        """Close, open, roll back; then up to `passes` times: propose, run all rows that fit, choose, accept.

        Raises:
            ValueError: a token id is outside the vocabulary, or `keep` is beyond what the cache holds; no row ran.
        """
        ahead = self._ahead.take(request)
        self._continuing = []
        for sequence, committed in zip(request.closes, request.committed or [0] * len(request.closes), strict=True):
            self._close(sequence, committed)
        if request.reset:
            self.kv_cache.reset()
        for opened in request.opens:
            self._close(opened.sequence, 0)
            state = DraftState(opened, SamplingState(opened.sampling, opened.prompt_length))
            table = BlockTable(root_key(self.engine.identity, opened.salt))
            self._sequences[opened.sequence] = HeldSequence(state, table)
        self._check(request.rows)
        for asked in request.rows:
            self._publish(asked.sequence, asked.keep)
        prepared = [
            ahead[row.sequence].running if row.sequence in ahead else self._prepare(row) for row in request.rows
        ]
        rows = [row for row in prepared if isinstance(row, Running)]
        call = self._ahead.call if ahead else Call()
        # Rows that ran ahead have had their first pass.
        running = [one.running for one in ahead.values() if one.went_on]
        if len(ahead) < len(rows):
            done = {id(one.running) for one in ahead.values()}
            running += self._pass([row for row in rows if id(row) not in done], call)
        for _ in range(request.passes - 1):
            if not running:
                break
            running = self._pass(running, call)
        self._continuing = running if request.passes > 1 else []
        for row in rows:
            self._publish(row.held.drafting.opened.sequence, row.held.prompt_length)
        held = [self._sequences.get(row.sequence) for row in request.rows]
        ran = [row if isinstance(row, Running) else None for row in prepared]
        return StepResult(
            epoch=self.epoch,
            status=np.array([RowStatus.OK if isinstance(row, Running) else row for row in prepared], np.int32),
            lengths=np.array([one.table.length if one else 0 for one in held], np.int32),
            cached=np.array([row.found if row else 0 for row in ran], np.int32),
            counts=np.array([len(row.chosen) if row else 0 for row in ran], np.int32),
            drafted=np.array([row.drafted if row else 0 for row in ran], np.int32),
            chosen=np.array([token for row in rows for token in row.chosen], np.int32),
            origins=np.array([origin for row in rows for origin in row.origins], np.uint8),
            log_probs=np.array([value for row in rows for value in row.log_probs], np.float32),
            pass_rows=np.array(call.pass_rows, np.int32),
            positions=call.positions,
            free_blocks=self.kv_cache.free_blocks,
            total_blocks=self.kv_cache.usable_blocks,
            block_size=self.kv_cache.block_size,
            propose_s=call.propose_s,
            forward_s=call.forward_s,
            sampling_s=call.sampling_s,
            cache=cache_array(self.kv_cache),
            tiers=self.kv_cache.tiers.to_array(),
        )

    @property
    def can_run_ahead(self) -> bool:
        """Whether `run_ahead` would do anything."""
        return bool(self._continuing) and not (self.speculation and self.speculation.is_remote)

    def run_ahead(self) -> None:
        """One pass that the next call is expected to ask for; to be called after a `step`, once."""
        rows, self._continuing = self._continuing, []
        self._ahead.run(rows, self._pass)

    def warm_up(self) -> None:
        """Run the shapes of prefill and decode once, so that the first request does not pay for first-time work."""
        warm_up(self.engine.vocab_size)
        tokens = [0] * min(WARM_UP_TOKENS, self.kv_cache.num_blocks * self.kv_cache.block_size - 2)
        self.step(StepRequest([StepRow(0, 0, tokens, 1)], [OpenSequence(0, len(tokens), SamplingParams())]))
        self.step(StepRequest([StepRow(0, len(tokens), [0], 1)]))
        self.step(StepRequest(closes=[0]))
        self.kv_cache.reset_pool()  # what other tiers keep of earlier processes stays

    def _close(self, sequence: int, committed: int) -> None:
        self._publish(sequence, committed)
        held = self._sequences.pop(sequence, None)
        if held is not None:
            self.kv_cache.release(held.table)
            if self.speculation is not None:
                self.speculation.close(held.drafting)

    def _publish(self, sequence: int, committed: int) -> None:
        """Let others have what a sequence holds of its first `committed` tokens."""
        held = self._sequences.get(sequence)
        if held is not None:
            opened = held.drafting.opened
            committed = min(committed, held.table.length)
            self.kv_cache.publish(held.table, held.sampling.history, committed, opened.prompt_length, opened.retention)

    def _find(self, held: HeldSequence, tokens: Sequence[int]) -> int:
        """Take what the prefix cache has of a sequence that begins with these tokens; returns how many it has.

        The last token is computed anew, for its logits, and the last but one with it if both are prompt: see
        `chunk_length`.
        """
        most = len(tokens) - 1
        if held.prompt_length - most == 1 < held.prompt_length:
            most -= 1
        retention = held.drafting.opened.retention
        found = self.kv_cache.match(held.table, tokens, most, held.prompt_length, retention)
        if held.prompt_length - found == 1 and found:  # what was found ends there
            self.kv_cache.truncate(held.table, found - 1)
        held.sampling.append(tokens[: held.table.length])
        return held.table.length

    def _check(self, rows: Sequence[StepRow]) -> None:
        if len({row.sequence for row in rows}) < len(rows):
            raise ValueError("a sequence may have one row in a step")
        for row in rows:
            if min(row.tokens) < 0 or max(row.tokens) >= self.engine.vocab_size:
                raise ValueError(f"sequence {row.sequence}: token ids must be in 0 .. {self.engine.vocab_size - 1}")
            held = self._sequences.get(row.sequence)
            if held is not None and row.keep > held.table.length:
                raise ValueError(f"sequence {row.sequence}: keep {row.keep} of {held.table.length} cached tokens")

    def _prepare(self, row: StepRow) -> Running | RowStatus:
        """Roll back, and reserve blocks for the first pass."""
        held = self._sequences.get(row.sequence)
        if held is None:
            return RowStatus.UNKNOWN_SEQUENCE
        self.kv_cache.truncate(held.table, row.keep)
        held.sampling.truncate(row.keep)
        running = Running(held, row.tokens, row.choices)
        if row.limit and not held.table.length:
            running.found = self._find(held, row.tokens)
            rest = row.tokens[running.found :]
            count = chunk_length(len(rest), held.prompt_length - running.found, row.limit)
            running.tokens, running.budget = rest[:count], row.choices if count == len(rest) else 0
        if self._reserve(running, 0):
            return running
        self.kv_cache.truncate(held.table, row.keep)
        held.sampling.truncate(row.keep)
        return RowStatus.OUT_OF_BLOCKS

    def _reserve(self, row: Running, drafts: int) -> bool:
        """Blocks for the row's tokens and so many drafts behind them; False if there are too few."""
        try:
            self.kv_cache.reserve(row.held.table, row.held.table.length + len(row.tokens) + drafts)
        except OutOfBlocks:
            return False
        return True

    def _pass(self, rows: list[Running], call: Call) -> list[Running]:
        """One cycle over rows that have their blocks; returns the rows that go on, with theirs."""
        started = time.perf_counter()
        decoding = all(row.is_decoding for row in rows)  # afterwards a row whose prompt has ended looks like it
        for row in rows:
            row.held.sampling.append(row.tokens)
        with ranges.PROPOSE:
            proposals = self._propose(rows)
        proposed = time.perf_counter()
        width = self._width(rows, proposals)
        inputs, choices = self._inputs(rows, proposals), self._choices(rows, proposals)
        with ranges.FORWARD:
            if self._choosing is not None:
                chosen = self._choosing.choose(inputs, choices, width)
            else:
                logits = self.engine.forward(inputs, width)
        forwarded = time.perf_counter()
        self._observe_prefill(rows, forwarded - proposed)
        with ranges.ACCEPT:
            self._accept(rows, proposals, chosen if self._choosing is not None else choose(logits, choices), call)
        call.pass_rows.append(len(rows))
        call.propose_s += proposed - started
        call.forward_s += forwarded - proposed
        call.sampling_s += time.perf_counter() - forwarded
        if self.speculation is not None and decoding:
            self.speculation.cost.observe(width, forwarded - proposed)
        return [row for row in rows if self._goes_on(row) and self._reserve(row, 0)]

    def _observe_prefill(self, rows: Sequence[Running], seconds: float) -> None:
        """What computing a block costs, which fetching one from another tier is compared with."""
        tokens = sum(len(row.tokens) for row in rows)
        if tokens >= PREFILL_TOKENS:
            self.kv_cache.tiers.block_s = seconds / tokens * self.kv_cache.block_size

    @staticmethod
    def _goes_on(row: Running) -> bool:
        return bool(row.budget and row.chosen) and row.chosen[-1] not in (NO_TOKEN, *row.held.sampling.params.end_ids)

    def _propose(self, rows: Sequence[Running]) -> list[Proposal]:
        """Drafts for the rows that are decoding, as far as there are blocks for them."""
        proposals = [Proposal(row.held.drafting, self._draft_limit(row)) for row in rows]
        if self.speculation is not None and all(row.is_decoding for row in rows):
            self.speculation.propose(proposals, len(rows))
            for row, proposal in zip(rows, proposals, strict=True):
                proposal.tokens = self._valid(proposal.tokens)
                if proposal.tokens and not self._reserve(row, len(proposal.tokens)):
                    proposal.tokens = []
        return proposals

    def _draft_limit(self, row: Running) -> int:
        # The bonus token takes the last place of the budget.
        return max(0, min(row.budget - 1, row.held.drafting.opened.max_drafts, MAX_DRAFTS)) if row.is_decoding else 0

    def _valid(self, tokens: list[int]) -> list[int]:
        """Drafts up to the first that the target cannot even read."""
        for place, token in enumerate(tokens):
            if not 0 <= token < self.engine.vocab_size:
                return tokens[:place]
        return tokens

    def _width(self, rows: Sequence[Running], proposals: Sequence[Proposal]) -> int:
        """How many tokens the engine is to compute: steps with drafts come in a few widths only, see `step_cost`."""
        plain = len(rows)
        drafts = sum(len(proposal.tokens) for proposal in proposals)
        if self.speculation is None or not drafts:
            return plain
        return self.speculation.cost.wider(plain, plain + drafts)[-1]

    @staticmethod
    def _inputs(rows: Sequence[Running], proposals: Sequence[Proposal]) -> list[Row]:
        inputs = []
        for row, proposal in zip(rows, proposals, strict=True):
            tokens = [*row.tokens, *proposal.tokens]
            past, table = row.held.table.length, row.held.table
            answer = min(len(tokens), max(0, past + len(tokens) - row.held.prompt_length))
            logits = 1 + len(proposal.tokens) if row.budget else 0
            inputs.append(Row(tokens, past, table.blocks, logits, answer))
        return inputs

    @staticmethod
    def _choices(rows: Sequence[Running], proposals: Sequence[Proposal]) -> list[Choice]:
        """One at every draft and one behind; the histories then end with the drafts."""
        choices: list[Choice] = []
        for row, proposal in zip(rows, proposals, strict=True):
            sampling = row.held.sampling
            if row.budget:
                newest = len(sampling)
                sampling.append(proposal.tokens)
                choices.extend(Choice(sampling, newest + place) for place in range(1 + len(proposal.tokens)))
        return choices

    def _accept(
        self,
        rows: Sequence[Running],
        proposals: Sequence[Proposal],
        choice: tuple[Int32s, Floats],
        call: Call,
    ) -> None:
        """Keep the drafts that are what was chosen at their positions, and roll back behind them."""
        chosen, values = (part.tolist() for part in choice)
        at = 0
        for row, proposal in zip(rows, proposals, strict=True):
            held, drafts = row.held, proposal.tokens
            length = held.table.length + len(row.tokens)
            if row.budget:
                accepted = agreement(drafts, chosen[at : at + len(drafts)])
                run = _up_to_end(chosen[at : at + accepted + 1], held.sampling.params.end_ids)
                row.chosen += run
                row.log_probs += values[at : at + len(run)]
                row.origins += ([proposal.origin] * accepted + [Origin.TARGET])[: len(run)]
                row.drafted += len(drafts)
                row.budget -= len(run)
                row.tokens = run[-1:]
                self._observe(held, proposal, accepted, at, call)
                length += len(run) - 1
                at += 1 + len(drafts)
            held.table.length = length
            self.kv_cache.truncate(held.table, length)
            held.sampling.truncate(length)

    def _observe(self, held: HeldSequence, proposal: Proposal, accepted: int, at: int, call: Call) -> None:
        """Statistics of one verified run, and what a drafter that goes on from the hidden states will need."""
        if proposal.tokens:
            call.positions[: len(proposal.tokens), 0] += 1
            call.positions[:accepted, 1] += 1
        if self.speculation is not None:
            self.speculation.observe(proposal, accepted)
            if self.speculation.wants_features and held.drafting.uses("draft"):
                held.drafting.features = self.engine.features[at + accepted].copy()


def _up_to_end(run: list[int], end_ids: Sequence[int]) -> list[int]:
    """What was chosen, up to the first token behind which nothing can follow."""
    for place, token in enumerate(run):
        if token == NO_TOKEN or token in end_ids:
            return run[: place + 1]
    return run
