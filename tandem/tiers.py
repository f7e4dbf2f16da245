"""Where KV blocks go that the pool gives up: host memory, then a directory, and a server shared by a fleet.

A tier is a `BlockStore`. What one has no room for goes to the next. A block is fetched back only from where that has
been found to take less time than to compute it. No tier can make a request fail: a fault is a miss that is counted.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

POOL = 0  # place of the pool in everything that is counted by tier
TIERS = ("pool", "host", "disk", "redis")
MEMORY = 0.1  # weight of the newest measurement
RETRY = 64  # of so many hits in a tier that seems too slow one is fetched, to see whether it still is

Block = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)


class BlockStore(Protocol):
    """Keeps blocks by key, up to a size."""

    name: str  # one of TIERS
    is_shared: bool  # others use it too: it gets each prompt's blocks at once, not only those that are given up
    bytes_used: int
    stored_blocks: int  # ever
    faults: int  # damaged, foreign or unreachable

    def get(self, key: bytes) -> Block | None:
        """The block; None if it is not there, or damaged. Does not raise."""
        ...

    def put(self, key: bytes, data: Block) -> list[tuple[bytes, Block]]:
        """Keep a block, unless it is there; returns what had to leave.

        Does not raise, and does not wait for slow devices.
        """
        ...

    def has(self, key: bytes) -> bool:
        """Whether it probably is there."""
        ...

    def remove(self, key: bytes) -> None: ...

    def clear(self) -> None: ...

    def close(self, last: Iterable[tuple[bytes, Block]] = ()) -> list[tuple[bytes, Block]]:
        """End, and keep `last` for the next process if this tier outlives this one.

        Returns:
            What this tier has and does not keep for the next process, and those of `last` that it does not, those
            that are needed least first.
        """
        ...


@dataclass(slots=True)
class TierCounts:
    hit_tokens: int = 0
    restored_blocks: int = 0


class HostTier:
    """Implements `BlockStore` in this process's memory; the longest unused leave first."""

    name = "host"
    is_shared = False
    faults = 0

    def __init__(self, megabytes: float) -> None:
        self._room = int(megabytes * 2**20)
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.bytes_used = 0
        self.stored_blocks = 0

    def get(self, key: bytes) -> Block | None:
        """See `BlockStore.get`."""
        data = self._blocks.get(key)
        if data is not None:
            self._blocks.move_to_end(key)
        return data

    def has(self, key: bytes) -> bool:
        """See `BlockStore.has`."""
        return key in self._blocks

    def put(self, key: bytes, data: Block) -> list[tuple[bytes, Block]]:
        """See `BlockStore.put`."""
        if key in self._blocks:
            return []
        self._blocks[key] = data
        self.bytes_used += data.nbytes
        self.stored_blocks += 1
        left = []
        while self.bytes_used > self._room:
            oldest, old = self._blocks.popitem(last=False)
            self.bytes_used -= old.nbytes
            left.append((oldest, old))
        return left

    def remove(self, key: bytes) -> None:
        """See `BlockStore.remove`."""
        old = self._blocks.pop(key, None)
        if old is not None:
            self.bytes_used -= old.nbytes

    def clear(self) -> None:
        """See `BlockStore.clear`."""
        self._blocks.clear()
        self.bytes_used = 0

    def close(self, last: Iterable[tuple[bytes, Block]] = ()) -> list[tuple[bytes, Block]]:
        """See `BlockStore.close`."""
        return [*self._blocks.items(), *last]


class TierStack:
    """The tiers below the pool, nearest first."""

    def __init__(self, stores: Sequence[BlockStore]) -> None:
        self.stores = list(stores)
        self.counts = [TierCounts() for _ in TIERS]
        self.block_s = float("inf")  # seconds to compute a block, kept up to date by the executor
        self._get_s = [0.0] * len(self.stores)  # seconds to fetch one
        self._skipped = 0

    def __bool__(self) -> bool:
        return bool(self.stores)

    def get(self, key: bytes) -> tuple[Block | None, int]:
        """A block and the place in `TIERS` of where it was found."""
        for place, store in enumerate(self.stores):
            if not store.has(key) or not self._pays(place):
                continue
            started = time.perf_counter()
            data = store.get(key)
            if data is not None:
                taken = time.perf_counter() - started
                self._get_s[place] += MEMORY * (taken - self._get_s[place]) if self._get_s[place] else taken
                tier = TIERS.index(store.name)
                self.counts[tier].restored_blocks += 1
                return data, tier
        return None, POOL

    def _pays(self, place: int) -> bool:
        if self._get_s[place] <= self.block_s:
            return True
        self._skipped += 1
        return self._skipped % RETRY == 0

    def put(self, key: bytes, data: Block) -> None:
        """Keep a block that the pool gives up."""
        blocks = [(key, data)]
        for store in self.stores:
            if not store.is_shared:
                blocks = [left for block in blocks for left in store.put(*block)]

    @property
    def shares(self) -> bool:
        """Whether one of the tiers wants each prompt's blocks."""
        return any(store.is_shared for store in self.stores)

    def share(self, key: bytes, data: Block) -> None:
        """Offer a block of a prompt to the tiers that others use too."""
        for store in self.stores:
            if store.is_shared:
                store.put(key, data)

    def reject(self, key: bytes, tier: int) -> None:
        """The block that was found under this key is not one of ours."""
        self.counts[tier].restored_blocks -= 1
        for store in self.stores:
            if TIERS[tier] == store.name:
                log.warning("%s tier: a block of another size is not used", store.name)
                store.faults += 1
                store.remove(key)

    def clear(self) -> None:
        for store in self.stores:
            store.clear()

    def close(self, last: Iterable[tuple[bytes, Block]] = ()) -> None:
        """End; `last`, those blocks that are needed least first, goes to the tiers that outlive this process."""
        for store in self.stores:
            last = store.close(last)

    def to_array(self) -> npt.NDArray[np.int64]:
        """int64 [tiers, 5]: tokens found, blocks restored, blocks stored, faults, bytes."""
        stores = {store.name: store for store in self.stores}
        return np.array(
            [
                (
                    counts.hit_tokens,
                    counts.restored_blocks,
                    *((s.stored_blocks, s.faults, s.bytes_used) if (s := stores.get(name)) else (0, 0, 0)),
                )
                for name, counts in zip(TIERS, self.counts, strict=True)
            ],
            np.int64,
        )
