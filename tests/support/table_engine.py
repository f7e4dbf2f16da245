"""A tiny language model that reads its history back from the KV blocks it wrote.

Its logits are a function of the whole history, so a wrong block, a skipped rollback or a lost token changes the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tandem.engines import Row

UNWRITTEN = -1


def table_logits(history: Sequence[int], vocab_size: int) -> npt.NDArray[np.float32]:
    """Logits [vocab_size] after `history`."""
    return np.random.default_rng(list(history)).normal(size=vocab_size).astype(np.float32) * 2


class TableEngine:
    """Implements `tandem.engines.Engine`."""

    graph_widths: Sequence[int] = ()
    identity = "table"

    def __init__(self, vocab_size: int = 32, block_size: int = 4, num_blocks: int = 64) -> None:
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.memory = np.full((num_blocks, block_size), UNWRITTEN)
        self.steps: list[list[Row]] = []

    def forward(self, rows: Sequence[Row], width: int = 0) -> npt.NDArray[np.float32]:
        self.steps.append(list(rows))
        owners = [set(row.blocks) for row in rows]
        for index, row in enumerate(rows):
            written = {row.blocks[(row.past + place) // self.block_size] for place in range(len(row.tokens))}
            others = set().union(*owners[:index], *owners[index + 1 :])
            assert not written & others, "a block that another sequence has is written to"
        logits = []
        for row in rows:
            for offset, token in enumerate(row.tokens):
                block, slot = divmod(row.past + offset, self.block_size)
                self.memory[row.blocks[block], slot] = token
            history = self.memory[list(row.blocks)].reshape(-1).tolist()
            end = row.past + len(row.tokens)
            assert UNWRITTEN not in history[:end], "a position was never computed"
            logits += [table_logits(history[:at], self.vocab_size) for at in range(end - row.logits + 1, end + 1)]
        return np.array(logits, np.float32).reshape(-1, self.vocab_size)

    def copy_block(self, source: int, target: int) -> None:
        self.memory[target] = self.memory[source]

    def read_block(self, block: int) -> npt.NDArray[np.uint8]:
        return self.memory[block].copy().view(np.uint8)

    def write_block(self, block: int, data: npt.NDArray[np.uint8]) -> None:
        if len(data) != self.memory[block].nbytes:
            raise ValueError("another size")
        self.memory[block] = data.view(self.memory.dtype)


class SlotTableEngine(TableEngine):
    """The same with slots, each of which holds a whole sequence: implements `tandem.slot_cache.SlotMemory` too."""

    def __init__(self, vocab_size: int = 32, slot_size: int = 64, slots: int = 6) -> None:
        super().__init__(vocab_size, slot_size, slots)

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        self.memory[target, :tokens] = self.memory[source, :tokens]
