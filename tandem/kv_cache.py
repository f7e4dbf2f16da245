"""Which KV blocks belong to which sequence, and which are kept for sequences to come.

Blocks are counted by reference. A block that is full of committed tokens is published: other sequences that begin alike
share it, and it is kept when its last sequence has gone, until its place is needed. Published blocks are never written
to; a sequence that goes on in the middle of one gets a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tandem.prefix_index import Entry, PrefixIndex, block_key
from tandem.tiers import POOL, TIERS, TierStack

MIN_COPIED = 4  # tokens for which a copy of a block pays: it takes as long as computing one or two


class OutOfBlocks(Exception):
    """The pool has too few free blocks; nothing was allocated."""


@runtime_checkable
class BlockMemory(Protocol):
    """Where K and V are; an engine."""

    def copy_block(self, source: int, target: int) -> None: ...

    def read_block(self, block: int) -> npt.NDArray[np.uint8]:
        """A copy of K and V of all layers, uint8 [bytes]."""
        ...

    def write_block(self, block: int, data: npt.NDArray[np.uint8]) -> None:
        """What `read_block` gave; raises `ValueError` if the size is another."""
        ...


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order of position."""

    root: bytes = b""  # see tandem.prefix_index.root_key
    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens whose K and V are in the cache
    keys: list[bytes] = field(default_factory=list)  # of its first blocks, as far as they were published


@dataclass(frozen=True, slots=True)
class Retention:
    """How a sequence wants its blocks to be kept."""

    priority: int = 50  # 0 .. 100; lower ones are given up first
    pinned: bool = False
    skipped: bool = False  # nothing that is kept is used, and nothing of this sequence is kept


class KvCache:
    """A pool of equal blocks. Rolling a sequence back is forgetting its last tokens: nothing is copied."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        memory: BlockMemory | None = None,
        tiers: TierStack | None = None,
        tell_answers_apart: bool = False,
        most_pinned: int = 0,
    ) -> None:
        """A pool of free blocks.

        Args:
            num_blocks: of the pool.
            block_size: tokens in a block.
            memory: the engine; without it nothing is reused.
            tiers: where blocks go that the pool gives up.
            tell_answers_apart: K and V that were computed as those of an answer are not reused for a prompt.
            most_pinned: blocks that can be pinned at a time.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._memory = memory
        self.tiers = tiers or TierStack(())
        self._tell_answers_apart = tell_answers_apart
        self._most_pinned = most_pinned
        self._free = list(range(num_blocks - 1, -1, -1))
        self._references = [0] * num_blocks
        self._index = PrefixIndex()
        self._pinned = 0
        self.queried_tokens = 0
        self.evicted_blocks = 0
        self.copied_blocks = 0
        self.resets = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that can be had, those kept for a hit included."""
        return len(self._free) + self._index.idle_blocks

    @property
    def usable_blocks(self) -> int:
        """Blocks that a sequence could have if it were alone."""
        return self.num_blocks - self._pinned

    @property
    def cached_blocks(self) -> int:
        return len(self._index)

    @property
    def pinned_blocks(self) -> int:
        return self._pinned

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Make `table` cover the positions 0 .. tokens - 1, and those from `table.length` on its own.

        Raises:
            OutOfBlocks: too few blocks are free; the table is unchanged.
        """
        missing = self.blocks_for(tokens) - len(table.blocks)
        shared = self._shared_block(table) if tokens > table.length else None
        if shared is not None and self._references[shared] == 1 and missing >= self.free_blocks:
            self._unpublish(shared)  # there is no room for a copy
            shared = None
        wanted = max(0, missing) + (shared is not None)
        if wanted > self.free_blocks:
            raise OutOfBlocks(f"{wanted} KV blocks wanted, {self.free_blocks} of {self.num_blocks} free")
        if shared is not None and self._memory is not None:
            own = self._take()
            self._memory.copy_block(shared, own)
            table.blocks[table.length // self.block_size] = own
            self._give_back(shared)
            self.copied_blocks += 1
        for _ in range(missing):
            table.blocks.append(self._take())

    def truncate(self, table: BlockTable, length: int) -> None:
        """Roll back to the first `length` tokens and give back the blocks that no longer hold any."""
        assert 0 <= length <= table.length
        table.length = length
        keep = self.blocks_for(length)
        del table.keys[length // self.block_size :]
        for block in reversed(table.blocks[keep:]):
            self._give_back(block)
        del table.blocks[keep:]

    def release(self, table: BlockTable) -> None:
        """Give back all blocks of a sequence."""
        self.truncate(table, 0)

    def publish(
        self,
        table: BlockTable,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        committed: int,
        prompt_length: int,
        retention: Retention,
    ) -> None:
        """Let others have the full blocks of the first `committed` tokens.

        Args:
            table: of the sequence.
            tokens: of the sequence, at least the committed ones.
            committed: tokens that will not be rolled back, at most `table.length`.
            prompt_length: those behind are an answer's.
            retention: how to keep them.
        """
        if self._memory is None or retention.skipped:
            return
        for place in range(len(table.keys), min(committed, table.length) // self.block_size):
            begin, end = place * self.block_size, (place + 1) * self.block_size
            part = tuple(int(token) for token in tokens[begin:end])
            answers = min(self.block_size, max(0, end - prompt_length)) if self._tell_answers_apart else 0
            parent = table.keys[-1] if table.keys else table.root
            key, block = block_key(parent, part, answers), table.blocks[place]
            table.keys.append(key)
            entry = self._index.find(key)
            if entry is None and self._index.of_block(block) is None:
                entry = Entry(key, parent, part, answers, block)
                self._index.add(entry)
                if self.tiers.shares and end <= prompt_length:
                    self.tiers.share(key, self._memory.read_block(block))
            if entry is not None:
                self._retain(entry, retention, is_prompt=end <= prompt_length)

    def match(
        self, table: BlockTable, tokens: Sequence[int], most: int, prompt_length: int, retention: Retention
    ) -> int:
        """Give an empty table the blocks that hold the beginning of `tokens`.

        Args:
            table: gets the blocks; its length is the number of tokens found.
            tokens: what the sequence begins with.
            most: tokens that may be found.
            prompt_length: those behind are an answer's.
            retention: how to keep what is found.

        Returns:
            The number of tokens found.
        """
        assert not table.blocks
        if retention.skipped:
            return 0
        self.queried_tokens += len(tokens)
        if self._memory is None:
            return 0
        size, found = self.block_size, [0] * len(TIERS)
        parent, whole = table.root, 0
        while (whole + 1) * size <= len(tokens) and whole * size < most:
            end = (whole + 1) * size
            answers = min(size, max(0, end - prompt_length)) if self._tell_answers_apart else 0
            part = tuple(tokens[whole * size : end])
            key = block_key(parent, part, answers)
            entry, tier = self._index.find(key), POOL
            if entry is None:
                entry, tier = self._restore(key, parent, part, answers)
            else:
                self._hold(entry)
            if entry is None:
                break
            self._retain(entry, retention, is_prompt=end <= prompt_length)
            table.blocks.append(entry.block)
            table.keys.append(key)
            found[tier] += min(size, most - whole * size)
            parent, whole = key, whole + 1
        table.length = min(whole * size, most)
        rest = min(most, prompt_length if self._tell_answers_apart else most) - whole * size
        if rest >= MIN_COPIED:
            entry, count = self._index.find_beginning(parent, tokens[whole * size : whole * size + rest])
            if entry is not None and count >= MIN_COPIED:
                self._hold(entry)
                table.blocks.append(entry.block)
                table.length += count
                found[POOL] += count
        del table.keys[table.length // size :]
        for tier, count in enumerate(found):
            self.tiers.counts[tier].hit_tokens += count
        return table.length

    def reset_pool(self) -> None:
        """Forget what the pool keeps for sequences to come, pinned or not."""
        for entry in self._index:
            self._unpublish(entry.block)

    def reset(self) -> None:
        """Forget it in all tiers."""
        self.resets += 1
        self.reset_pool()
        self.tiers.clear()

    def close(self) -> None:
        """The process ends: what is kept in the pool goes to tiers that outlive it."""
        memory = self._memory
        kept = self._index.idle() if memory is not None else []
        self.tiers.close((entry.key, memory.read_block(entry.block)) for entry in kept if memory is not None)

    def _shared_block(self, table: BlockTable) -> int | None:
        """The block that the next token of a sequence goes into, if it must not be written to."""
        place = table.length // self.block_size
        if place >= len(table.blocks):
            return None
        block = table.blocks[place]
        return block if self._references[block] > 1 or self._index.of_block(block) is not None else None

    def _restore(self, key: bytes, parent: bytes, tokens: tuple[int, ...], answers: int) -> tuple[Entry | None, int]:
        """A block from the tiers below; None if none has it or there is no place for it."""
        if not self.free_blocks or self._memory is None:
            return None, POOL
        data, tier = self.tiers.get(key)
        if data is None:
            return None, tier
        block = self._take()
        try:
            self._memory.write_block(block, data)
        except ValueError:  # of another engine
            self.tiers.reject(key, tier)
            self._give_back(block)
            return None, tier
        entry = Entry(key, parent, tokens, answers, block)
        self._index.add(entry)
        return entry, tier

    def _retain(self, entry: Entry, retention: Retention, is_prompt: bool) -> None:
        """The block is held, so its place in the order is decided when it rests."""
        if self._references[entry.block]:
            entry.priority = max(entry.priority, retention.priority)
            if retention.pinned and is_prompt and not entry.pinned and self._pinned < self._most_pinned:
                entry.pinned = True
                self._pinned += 1

    def _hold(self, entry: Entry) -> None:
        if not self._references[entry.block]:
            self._index.hold(entry)
        self._references[entry.block] += 1

    def _unpublish(self, block: int) -> None:
        entry = self._index.of_block(block)
        if entry is not None:
            self._index.remove(entry)
            self._pinned -= entry.pinned
            if not self._references[block]:
                self._free.append(block)

    def _take(self) -> int:
        """A block for a sequence of its own; the caller has made sure that there is one."""
        if not self._free:
            entry = self._index.victim()
            assert entry is not None
            if self._memory is not None and self.tiers:
                self.tiers.put(entry.key, self._memory.read_block(entry.block))
            self._unpublish(entry.block)
            self.evicted_blocks += 1
        block = self._free.pop()
        self._references[block] = 1
        return block

    def _give_back(self, block: int) -> None:
        self._references[block] -= 1
        if not self._references[block]:
            entry = self._index.of_block(block)
            if entry is None:
                self._free.append(block)
            else:
                self._index.rest(entry)
