"""What the executor needs of its KV memory, whichever layout the engine has: blocks or slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tandem.engines import Engine
from tandem.kv_cache import BlockMemory, BlockTable, KvCache, Retention
from tandem.slot_cache import SlotCache, SlotMemory
from tandem.tiers import TierStack


class SequenceCache(Protocol):
    """Sequences in a pool of equal blocks; `KvCache` says what each method does."""

    num_blocks: int
    block_size: int  # tokens
    tiers: TierStack
    queried_tokens: int
    evicted_blocks: int
    copied_blocks: int
    resets: int

    @property
    def free_blocks(self) -> int: ...

    @property
    def usable_blocks(self) -> int: ...

    @property
    def cached_blocks(self) -> int: ...

    @property
    def pinned_blocks(self) -> int: ...

    def reserve(self, table: BlockTable, tokens: int) -> None: ...

    def truncate(self, table: BlockTable, length: int) -> None: ...

    def release(self, table: BlockTable) -> None: ...

    def publish(
        self,
        table: BlockTable,
        tokens: Sequence[int] | npt.NDArray[np.int32],
        committed: int,
        prompt_length: int,
        retention: Retention,
    ) -> None: ...

    def match(
        self, table: BlockTable, tokens: Sequence[int], most: int, prompt_length: int, retention: Retention
    ) -> int: ...

    def reset_pool(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


def cache_of(
    engine: Engine,
    *,
    reuse: bool = True,
    tiers: TierStack | None = None,
    tell_answers_apart: bool = False,
    most_pinned: int = 0,
) -> SequenceCache:
    """The cache that fits an engine's memory.

    Args:
        engine: with blocks or slots.
        reuse: whether sequences that begin alike share what they have; the rest is for this only.
        tiers: where blocks go that the pool gives up; slots have none.
        tell_answers_apart: see `KvCache`.
        most_pinned: see `KvCache`.

    Raises:
        ValueError: there are tiers and the engine has slots.
    """
    if isinstance(engine, SlotMemory):
        if tiers:
            raise ValueError(
                "host_cache_mb, disk_cache_dir and redis_url keep KV blocks, and this engine has KV slots: leave them "
                "out, or serve an engine that was built with --runtime openvino"
            )
        memory = engine if reuse else None
        return SlotCache(engine.num_blocks, engine.block_size, memory, tell_answers_apart, most_pinned)
    if not isinstance(engine, BlockMemory):
        raise TypeError(f"{type(engine).__name__} has neither blocks nor slots")
    blocks = engine if reuse else None
    return KvCache(engine.num_blocks, engine.block_size, blocks, tiers, tell_answers_apart, most_pinned)
