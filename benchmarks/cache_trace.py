"""The hit rate of the prefix cache against the size of its pool: the cache itself on a trace, without an engine."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.kv_cache import BlockTable, KvCache, Retention
from tandem.prefix_index import root_key

BLOCK = 32
VOCABULARY = 49152


@dataclass(frozen=True)
class Trace:
    """Prompts, and which of them each request sends; the popularity of the n-th is 1/n (Zipf)."""

    prompts: list[list[int]]
    order: list[int]


def zipf_trace(prompts: int, requests: int, seed: int = 1) -> Trace:
    """Prompts of 64 to 512 tokens."""
    rng = random.Random(seed)
    texts = [[rng.randrange(VOCABULARY) for _ in range(rng.randrange(64, 513))] for _ in range(prompts)]
    weights = [1 / rank for rank in range(1, prompts + 1)]
    return Trace(texts, rng.choices(range(prompts), weights, k=requests))


class _NoMemory:
    """Implements `tandem.kv_cache.BlockMemory`: what is in the blocks does not matter here."""

    def copy_block(self, source: int, target: int) -> None:
        pass

    def read_block(self, block: int) -> npt.NDArray[np.uint8]:
        return np.zeros(0, np.uint8)

    def write_block(self, block: int, data: npt.NDArray[np.uint8]) -> None:
        pass


def hit_rate(trace: Trace, blocks: int) -> float:
    """Share of the prompts' tokens that the cache finds, one request after the other."""
    cache, retention = KvCache(blocks, BLOCK, _NoMemory()), Retention()
    found = total = 0
    for which in trace.order:
        prompt, table = trace.prompts[which], BlockTable(root_key("trace", ""))
        found += cache.match(table, prompt, len(prompt) - 2, len(prompt), retention)
        total += len(prompt)
        cache.reserve(table, len(prompt))
        table.length = len(prompt)
        cache.publish(table, prompt, len(prompt), len(prompt), retention)
        cache.release(table)
    return found / total


def ideal_hit_rate(trace: Trace, blocks: int) -> float:
    """The same for a cache that gives up whole prompts, the longest unused first, and has nothing else to keep."""
    kept: OrderedDict[int, int] = OrderedDict()
    found = total = used = 0
    for which in trace.order:
        length = len(trace.prompts[which])
        total += length
        if which in kept:
            found += min(length // BLOCK * BLOCK, length - 2)
            kept.move_to_end(which)
            continue
        kept[which] = length // BLOCK
        used += kept[which]
        while used > blocks:
            used -= kept.popitem(last=False)[1]
    return found / total


def pool_sizes(trace: Trace, shares: Sequence[float]) -> list[int]:
    """Blocks of pools that hold these shares of all prompts."""
    whole = sum(-(-len(prompt) // BLOCK) for prompt in trace.prompts)
    return [max(20, int(whole * share)) for share in shares]
