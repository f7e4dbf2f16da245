"""What the prefix cache of an executor counts, as arrays that cross the process boundary with each step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tandem.sequence_cache import SequenceCache
from tandem.tiers import TIERS

CACHE_COUNTERS = ("queried_tokens", "evicted_blocks", "copied_blocks", "resets")
CACHE_GAUGES = ("cached_blocks", "pinned_blocks")
TIER_COUNTERS = ("hit_tokens", "restored_blocks", "stored_blocks", "faults")  # the columns of TierStack.to_array,
TIER_GAUGES = ("bytes",)  # with these behind them


def cache_array(cache: SequenceCache) -> npt.NDArray[np.int64]:
    """int64 [6]: `CACHE_COUNTERS`, then `CACHE_GAUGES`."""
    return np.array([getattr(cache, name) for name in (*CACHE_COUNTERS, *CACHE_GAUGES)], np.int64)


class Totals:
    """Counters over all processes that an executor has had: each begins at 0."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._before = np.zeros((len(TIERS) + 1, len(TIER_COUNTERS)), np.int64)
        self._now = np.zeros_like(self._before)

    def observe(self, epoch: int, cache: npt.NDArray[np.int64], tiers: npt.NDArray[np.int64]) -> None:
        """Take what one step's answer says; rows of `tiers` as in `TierStack.to_array`."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._before = self._before + self._now
        self._now = np.zeros_like(self._before)
        self._now[0, : len(CACHE_COUNTERS)] = cache[: len(CACHE_COUNTERS)]
        self._now[1:] = tiers[:, : len(TIER_COUNTERS)]

    def add(self, other: Totals) -> None:
        """Count what another has counted."""
        self._before = self._before + other._before + other._now

    def cache(self, name: str) -> int:
        """The total of one of `CACHE_COUNTERS`."""
        return int((self._before + self._now)[0, CACHE_COUNTERS.index(name)])

    def tiers(self, name: str) -> list[int]:
        """The totals of one of `TIER_COUNTERS`, by tier."""
        totals: list[int] = (self._before + self._now)[1:, TIER_COUNTERS.index(name)].tolist()
        return totals
