"""Which KV blocks belong to which sequence."""

from __future__ import annotations

from dataclasses import dataclass, field


class OutOfBlocks(Exception):
    """The pool has too few free blocks; nothing was allocated."""


@dataclass(slots=True)
class BlockTable:
    """The blocks of one sequence, in order of position."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens whose K and V are in the cache


class KvCache:
    """A pool of equal blocks. Rolling a sequence back is forgetting its last tokens: nothing is copied."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Make `table` cover the positions 0 .. tokens - 1.

        Raises:
            OutOfBlocks: too few blocks are free; the table is unchanged.
        """
        missing = self.blocks_for(tokens) - len(table.blocks)
        if missing > len(self._free):
            raise OutOfBlocks(f"{missing} KV blocks wanted, {len(self._free)} of {self.num_blocks} free")
        for _ in range(missing):
            table.blocks.append(self._free.pop())

    def truncate(self, table: BlockTable, length: int) -> None:
        """Roll back to the first `length` tokens and free the blocks that no longer hold any."""
        assert 0 <= length <= table.length
        table.length = length
        keep = self.blocks_for(length)
        self._free.extend(reversed(table.blocks[keep:]))
        del table.blocks[keep:]

    def release(self, table: BlockTable) -> None:
        """Free all blocks of a sequence."""
        self.truncate(table, 0)
