"""Which KV slot belongs to which sequence, and what is kept in them for sequences to come.

A slot holds one whole sequence, so to everybody else it is a block as long as the longest text. What a sequence has
committed can be had by others while it runs and after it has gone, until the slot is needed: who begins alike gets a
copy of the common beginning, or the slot itself if nothing is lost by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tandem.kv_cache import MIN_COPIED, BlockTable, OutOfBlocks, Retention
from tandem.tiers import POOL, TierStack

Tokens = npt.NDArray[np.int32]


@runtime_checkable
class SlotMemory(Protocol):
    """Where K and V are; an engine."""

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy K and V of the first `tokens` positions from one slot to another."""
        ...


@dataclass(slots=True, eq=False)
class _Content:
    """What others may have of a slot: K and V of these tokens, which nothing overwrites."""

    root: bytes  # see tandem.prefix_index.root_key
    tokens: Tokens
    prompt_length: int  # those behind were computed as an answer's
    priority: int = 0
    pinned: bool = False
    used: int = 0  # when, for the order of giving up

    def common(self, tokens: Tokens) -> int:
        """How many tokens agree, from the first on."""
        length = min(len(tokens), len(self.tokens))
        different = self.tokens[:length] != tokens[:length]
        return int(different.argmax()) if different.any() else length

    def contains(self, other: _Content) -> bool:
        return self.root == other.root and self.common(other.tokens) == len(other.tokens)


class SlotCache:
    """Implements `tandem.sequence_cache.SequenceCache`. A rollback is forgetting the last tokens: nothing is copied."""

    def __init__(
        self,
        num_slots: int,
        slot_size: int,
        memory: SlotMemory | None = None,
        tell_answers_apart: bool = False,
        most_pinned: int = 0,
    ) -> None:
        """A pool of free slots.

        Args:
            num_slots: of the pool.
            slot_size: tokens of the longest sequence.
            memory: the engine; without it nothing is reused.
            tell_answers_apart: K and V that were computed as those of an answer are not reused for a prompt.
            most_pinned: slots that can be pinned at a time.
        """
        self.num_blocks = num_slots
        self.block_size = slot_size
        self.tiers = TierStack(())  # what is given up is gone
        self._memory = memory
        self._tell_answers_apart = tell_answers_apart
        self._most_pinned = most_pinned
        self._free = set(range(num_slots))  # without content
        self._owned: set[int] = set()
        self._unshared: set[int] = set()  # of those, the ones that had their sequence before a reset
        self._contents: dict[int, _Content] = {}  # by slot
        self._clock = count()
        self.queried_tokens = 0
        self.evicted_blocks = 0
        self.copied_blocks = 0
        self.resets = 0

    @property
    def free_blocks(self) -> int:
        """Slots that can be had, those kept for a hit included."""
        return len(self._free) + len(self._idle())

    @property
    def usable_blocks(self) -> int:
        """Slots that could be had if no sequence were there."""
        return self.num_blocks - self.pinned_blocks

    @property
    def cached_blocks(self) -> int:
        return len(self._contents)

    @property
    def pinned_blocks(self) -> int:
        return sum(content.pinned for content in self._contents.values())

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Give `table` a slot for `tokens` tokens, in which nobody relies on those from `table.length` on.

        Raises:
            OutOfBlocks: no slot is free, or none is as long; the table is unchanged.
        """
        if tokens > self.block_size:
            raise OutOfBlocks(f"{tokens} tokens wanted, a KV slot has room for {self.block_size}")
        if not table.blocks:
            table.blocks.append(self._take())
        content = self._contents.get(table.blocks[0])
        if tokens > table.length and content is not None and table.length < len(content.tokens):
            content.tokens = content.tokens[: table.length]
            if not table.length:
                del self._contents[table.blocks[0]]

    def truncate(self, table: BlockTable, length: int) -> None:
        """Roll back to the first `length` tokens; with none, give back the slot."""
        assert 0 <= length <= table.length
        table.length = length
        if length == 0 and table.blocks:
            self._give_back(table.blocks.pop())

    def release(self, table: BlockTable) -> None:
        """Give back the slot of a sequence; what it published stays until the slot is needed."""
        self.truncate(table, 0)

    def publish(
        self,
        table: BlockTable,
        tokens: Sequence[int] | Tokens,
        committed: int,
        prompt_length: int,
        retention: Retention,
    ) -> None:
        """Let others have the first `committed` tokens; see `KvCache.publish`."""
        committed = min(committed, table.length)
        if self._memory is None or retention.skipped or committed < MIN_COPIED:
            return
        slot = table.blocks[0]
        if slot in self._unshared:
            return
        content = self._contents.get(slot)
        if content is None:
            content = self._contents[slot] = _Content(table.root, np.zeros(0, np.int32), prompt_length)
        if len(content.tokens) < committed:
            content.tokens = np.array(tokens[:committed], np.int32)
            content.prompt_length = prompt_length
        content.priority = max(content.priority, retention.priority)
        if retention.pinned and not content.pinned and prompt_length <= committed:
            content.pinned = self.pinned_blocks < self._most_pinned and not self._is_pinned(content)

    def match(
        self, table: BlockTable, tokens: Sequence[int], most: int, prompt_length: int, retention: Retention
    ) -> int:
        """Give an empty table a slot that holds the beginning of `tokens`; see `KvCache.match`."""
        assert not table.blocks
        if retention.skipped:
            return 0
        self.queried_tokens += len(tokens)
        wanted = np.array(tokens[:most], np.int32)
        found, best = 0, -1
        for slot, content in self._contents.items():
            if content.root == table.root:
                common = content.common(wanted)
                if self._tell_answers_apart and content.prompt_length != prompt_length:
                    common = min(common, content.prompt_length, prompt_length)
                # Of equals an idle one: it can be had without a copy.
                if (common, slot not in self._owned) > (found, best not in self._owned):
                    found, best = common, slot
        if self._memory is None or found < MIN_COPIED:
            return 0
        content = self._contents[best]
        content.used = next(self._clock)
        content.priority = max(content.priority, retention.priority)
        own = self._slot_with(best, found)
        if own is None:
            return 0
        table.blocks.append(own)
        table.length = found
        self.tiers.counts[POOL].hit_tokens += found
        return found

    def reset_pool(self) -> None:
        """Forget what is kept for sequences to come, pinned or not."""
        self._contents.clear()
        self._unshared = set(self._owned)
        self._free = set(range(self.num_blocks)) - self._owned

    def reset(self) -> None:
        """The same: there are no other tiers."""
        self.resets += 1
        self.reset_pool()

    def close(self) -> None:
        """The process ends, and what is kept with it."""

    def _slot_with(self, source: int, tokens: int) -> int | None:
        """A slot of one's own that begins with the first tokens of `source`; None if there is no place for it."""
        assert self._memory is not None
        content = self._contents[source]
        can_have = source not in self._owned and not content.pinned
        others = [slot for slot in self._idle() if slot != source]
        if can_have and (tokens == len(content.tokens) or not (self._free or others)):
            self._owned.add(source)
            return source
        if not self._free and not others:
            return None
        target = self._take(spare=source)
        self._memory.copy_prefix(source, target, tokens)
        self.copied_blocks += 1
        return target

    def _idle(self) -> list[int]:
        """Slots that may be given up, the next one first: of the lowest priority the longest unused."""
        idle = [slot for slot, content in self._contents.items() if slot not in self._owned and not content.pinned]
        return sorted(idle, key=lambda slot: (self._contents[slot].priority, self._contents[slot].used))

    def _take(self, spare: int = -1) -> int:
        """A slot without content, which is not `spare`; the lowest one, so that running ones lie close together."""
        if not self._free:
            victim = next((slot for slot in self._idle() if slot != spare), None)
            if victim is None:
                raise OutOfBlocks(f"a KV slot wanted, 0 of {self.num_blocks} free")
            del self._contents[victim]
            self._free.add(victim)
            self.evicted_blocks += 1
        slot = min(self._free)
        self._free.remove(slot)
        self._owned.add(slot)
        return slot

    def _give_back(self, slot: int) -> None:
        self._owned.remove(slot)
        self._unshared.discard(slot)
        content = self._contents.get(slot)
        if content is None:
            self._free.add(slot)
            return
        content.used = next(self._clock)
        # Of two that say the same the longer one is enough.
        others = [other for other in self._contents if other != slot]
        if not content.pinned and any(self._contents[other].contains(content) for other in others):
            self._drop(slot)
            return
        for other in others:
            kept = self._contents[other]
            if other not in self._owned and not kept.pinned and content.contains(kept):
                content.priority = max(content.priority, kept.priority)
                self._drop(other)

    def _drop(self, slot: int) -> None:
        del self._contents[slot]
        self._free.add(slot)

    def _is_pinned(self, content: _Content) -> bool:
        """Whether another slot is pinned that holds this prompt already."""
        prompt = content.tokens[: content.prompt_length]
        return any(
            other.pinned and other.root == content.root and other.common(prompt) == len(prompt)
            for other in self._contents.values()
        )
