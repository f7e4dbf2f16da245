"""The block pool: no leak, no block with two owners, all or nothing."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem.kv_cache import BlockTable, KvCache, OutOfBlocks

BLOCKS, BLOCK_SIZE = 12, 4


class PoolMachine(RuleBasedStateMachine):
    """Random reserve, commit, roll back and release over three sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(BLOCKS, BLOCK_SIZE)
        self.tables = [BlockTable() for _ in range(3)]

    @rule(which=st.integers(0, 2), more=st.integers(1, 20), kept=st.floats(0, 1))
    def extend(self, which: int, more: int, kept: float) -> None:
        table = self.tables[which]
        before, free = list(table.blocks), self.cache.free_blocks
        try:
            self.cache.reserve(table, table.length + more)
        except OutOfBlocks:
            assert table.blocks == before
            assert self.cache.free_blocks == free
        else:
            table.length += round(more * kept)

    @rule(which=st.integers(0, 2), kept=st.floats(0, 1))
    def roll_back(self, which: int, kept: float) -> None:
        table = self.tables[which]
        self.cache.truncate(table, int(table.length * kept))
        assert len(table.blocks) == self.cache.blocks_for(table.length)

    @rule(which=st.integers(0, 2))
    def release(self, which: int) -> None:
        self.cache.release(self.tables[which])
        assert not self.tables[which].blocks

    @invariant()
    def every_block_has_one_place(self) -> None:
        held = [block for table in self.tables for block in table.blocks]
        assert sorted(held + self.cache._free) == list(range(BLOCKS))

    @invariant()
    def tables_cover_their_tokens(self) -> None:
        for table in self.tables:
            assert len(table.blocks) * BLOCK_SIZE >= table.length


TestPool = PoolMachine.TestCase


def test_block_arithmetic() -> None:
    cache = KvCache(BLOCKS, BLOCK_SIZE)
    assert [cache.blocks_for(n) for n in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_a_full_pool_says_how_full() -> None:
    cache, table = KvCache(2, BLOCK_SIZE), BlockTable()
    with pytest.raises(OutOfBlocks, match="3 KV blocks wanted, 2 of 2 free"):
        cache.reserve(table, 9)
