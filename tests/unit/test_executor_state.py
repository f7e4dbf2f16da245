"""The executor's caches under any order of steps: lengths, blocks and histories stay what was committed."""

from __future__ import annotations

from coordination import END, VOCAB
from guessing import GuessingDrafter, adversaries, eager
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from table_engine import SlotTableEngine, TableEngine

from tandem.executor import Executor
from tandem.kv_cache import KvCache, Retention
from tandem.sampling import SamplingParams
from tandem.sequence_cache import SequenceCache
from tandem.slot_cache import SlotCache
from tandem.step import OpenSequence, RowStatus, StepRequest, StepRow
from tandem.tiers import HostTier, TierStack

BLOCKS, BLOCK_SIZE = 12, 4
SLOTS, SLOT_SIZE = 4, 40
BLOCK_BYTES = BLOCK_SIZE * 8


class ExecutorMachine(RuleBasedStateMachine):
    """Opens, feeds, decodes with drafts, rolls back and closes sequences; `committed` is what each must hold."""

    @initialize(name=st.sampled_from(sorted(adversaries(VOCAB, END))))
    def start(self, name: str) -> None:
        self.engine = self.make_engine()
        self.drafter = GuessingDrafter(adversaries(VOCAB, END)[name])
        self.executor = Executor(self.engine, 1, eager(self.drafter), self.make_cache())
        self.committed: dict[int, list[int]] = {}
        self.newest: dict[int, int] = {}  # chosen, not fed yet
        self.left: dict[int, int] = {}  # tokens that the last row of a sequence might still have chosen
        self.opened = 0

    def make_engine(self) -> TableEngine:
        return TableEngine(VOCAB, BLOCK_SIZE, BLOCKS)

    def make_cache(self) -> SequenceCache:
        tiers = TierStack([HostTier(BLOCK_BYTES * 4 / 2**20)])
        return KvCache(BLOCKS, BLOCK_SIZE, self.engine, tiers, most_pinned=2)

    def step(self, row: StepRow, opens: list[OpenSequence], passes: int = 1) -> None:
        result = self.executor.step(StepRequest([row], opens, passes=passes))
        if result.status[0] == RowStatus.OUT_OF_BLOCKS:
            self.committed[row.sequence] = self.committed[row.sequence][: row.keep]
            self.newest.pop(row.sequence, None)
            return
        chosen = result.chosen.tolist()
        held = [*self.committed[row.sequence][: row.keep], *row.tokens, *chosen]
        self.committed[row.sequence] = held[: len(held) - bool(chosen)]
        self.newest.pop(row.sequence, None)
        self.left[row.sequence] = row.choices - len(chosen)
        if chosen:
            self.newest[row.sequence] = chosen[-1]
        assert len(chosen) <= max(0, row.choices)
        assert result.lengths[0] == len(self.committed[row.sequence])

    @rule(
        prompt=st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=9),
        choices=st.integers(0, 9),
        limited=st.booleans(),
    )
    def open(self, prompt: list[int], choices: int, limited: bool) -> None:
        self.open_sequence(prompt, choices, len(prompt) if limited else 0)

    @precondition(lambda self: any(self.committed.values()))
    @rule(data=st.data(), more=st.lists(st.integers(0, VOCAB - 2), min_size=1, max_size=9), choices=st.integers(0, 9))
    def open_alike(self, data: st.DataObject, more: list[int], choices: int) -> None:
        """A sequence that begins as another one, so that it may find blocks of it."""
        other = data.draw(st.sampled_from(sorted(s for s, held in self.committed.items() if held)))
        shared = data.draw(st.integers(1, len(self.committed[other])))
        prompt = [*self.committed[other][:shared], *more]
        self.open_sequence(prompt, choices, len(prompt))

    def open_sequence(self, prompt: list[int], choices: int, limit: int) -> None:
        self.opened += 1
        self.committed[self.opened] = []
        retention = Retention(self.opened % 3, self.opened % 5 == 0)
        opened = OpenSequence(
            self.opened, len(prompt), SamplingParams(end_ids=(END,)), "auto", 8, "ab"[self.opened % 2], retention
        )
        self.step(StepRow(self.opened, 0, prompt, choices, limit), [opened])

    @precondition(lambda self: self.newest)
    @rule(data=st.data(), choices=st.integers(1, 12), passes=st.integers(1, 4))
    def decode(self, data: st.DataObject, choices: int, passes: int) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.newest)))
        row = StepRow(sequence, len(self.committed[sequence]), [self.newest[sequence]], choices)
        self.step(row, [], passes)

    @precondition(lambda self: self.executor.can_run_ahead)
    @rule()
    def run_ahead(self) -> None:
        self.executor.run_ahead()

    @precondition(lambda self: any(self.left.get(sequence) for sequence in self.newest))
    @rule(data=st.data(), passes=st.integers(1, 4))
    def go_on(self, data: st.DataObject, passes: int) -> None:
        """Ask for what may have run ahead."""
        sequence = data.draw(st.sampled_from(sorted(s for s in self.newest if self.left.get(s))))
        row = StepRow(sequence, len(self.committed[sequence]), [self.newest[sequence]], self.left[sequence])
        self.step(row, [], passes)

    @precondition(lambda self: any(self.committed.values()))
    @rule(data=st.data(), token=st.integers(0, VOCAB - 2))
    def roll_back(self, data: st.DataObject, token: int) -> None:
        sequence = data.draw(st.sampled_from(sorted(s for s, held in self.committed.items() if held)))
        keep = data.draw(st.integers(0, len(self.committed[sequence])))
        self.step(StepRow(sequence, keep, [token], 1), [])

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(sorted(self.committed)))
        committed = data.draw(st.integers(0, len(self.committed[sequence])))
        self.executor.step(
            StepRequest(closes=[sequence], committed=[committed], reset=data.draw(st.integers(0, 9)) == 0)
        )
        del self.committed[sequence]
        self.newest.pop(sequence, None)

    @invariant()
    def caches_hold_what_was_committed(self) -> None:
        if not hasattr(self, "executor"):
            return
        assert self.executor._sequences.keys() == self.committed.keys()
        used: list[int] = []
        for sequence, held in self.committed.items():
            state = self.executor._sequences[sequence]
            if sequence in self.executor._ahead.rows:
                assert state.table.length > len(held)
            else:
                assert state.table.length == len(held)
            assert state.sampling.history.tolist()[: len(held)] == held
            assert len(state.sampling) == state.table.length
            assert len(state.table.blocks) >= -(-len(held) // self.engine.block_size)
            written = self.engine.memory[state.table.blocks].reshape(-1)[: len(held)].tolist()
            assert written == held
            used += state.table.blocks
        self.check_cache(used)

    def check_cache(self, used: list[int]) -> None:
        """`used`: the blocks of all sequences, as often as they are used."""
        cache = self.executor.kv_cache
        assert isinstance(cache, KvCache)
        kept = [entry.block for entry in cache._index.idle()]
        places = [*set(used), *cache._free, *kept]
        assert sorted(places) == list(range(BLOCKS)), "a block is lost, or in two places"
        assert cache._references == [used.count(block) for block in range(BLOCKS)]
        for entry in cache._index:
            assert self.engine.memory[entry.block].tolist() == list(entry.tokens), "a published block was written to"


class SlotMachine(ExecutorMachine):
    """The same where each sequence has a slot, and what is shared is copied."""

    def make_engine(self) -> TableEngine:
        return SlotTableEngine(VOCAB, SLOT_SIZE, SLOTS)

    def make_cache(self) -> SequenceCache:
        return SlotCache(SLOTS, SLOT_SIZE, self.engine, most_pinned=1)  # type: ignore[arg-type]

    def check_cache(self, used: list[int]) -> None:
        cache = self.executor.kv_cache
        assert isinstance(cache, SlotCache)
        assert len(used) == len(set(used)), "a slot has two owners"
        assert cache._owned == set(used), "a slot is lost"
        assert not cache._free & (cache._owned | cache._contents.keys()), "a slot is free and taken"
        assert cache._free | cache._owned | cache._contents.keys() == set(range(SLOTS)), "a slot is lost"
        assert cache.pinned_blocks <= 1
        for slot, content in cache._contents.items():
            tokens = content.tokens.tolist()
            assert tokens
            assert self.engine.memory[slot, : len(tokens)].tolist() == tokens, "what was published was written to"


TestExecutorMachine = ExecutorMachine.TestCase
TestExecutorMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSlotMachine = SlotMachine.TestCase
TestSlotMachine.settings = TestExecutorMachine.settings
