"""Which published KV blocks hold which tokens, and which of them is given up first.

A block's key is a hash over all tokens from the beginning of its text, so that equal keys mean equal contents; the
first parent is a root, made from what K and V depend on besides the tokens and from the salt (hash chains as in vLLM's
automatic prefix caching; Kwon et al. 2023 have the sharing of blocks). A text that ends or diverges within a block is
found by its parent and the block's first token.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KEY_BYTES = 16
CANDIDATES = 8  # blocks that begin alike, of which the one that agrees longest is looked for
PRIORITIES = range(101)


def root_key(identity: str, salt: str) -> bytes:
    """The parent of first blocks. `identity` says what K and V depend on: model, precisions, runtime."""
    return _digest(identity.encode() + b"\0" + salt.encode())


def block_key(parent: bytes, tokens: Sequence[int], answers: int = 0) -> bytes:
    """The key of a block.

    Args:
        parent: key of the block before it.
        tokens: all tokens of the block.
        answers: how many of the last ones were computed as tokens of an answer, where that is told apart.
    """
    return _digest(parent + np.array([*tokens, answers], np.int32).tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


@dataclass(slots=True, eq=False)
class Entry:
    """One published block: its content never changes."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]
    answers: int  # of the last tokens; see `block_key`
    block: int
    priority: int = 0
    pinned: bool = False


class PrefixIndex:
    """Published blocks by key. Those that no sequence holds are idle: they wait for a hit, or to be given up."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._of_block: dict[int, Entry] = {}
        self._beginnings: dict[tuple[bytes, int], list[Entry]] = {}  # by parent and first token, the newest last
        # The longest idle come first; a block becomes idle before its parent does, so leaves go before their roots.
        self._idle: dict[int, OrderedDict[Entry, None]] = {}  # by priority
        self._pinned_idle: set[Entry] = set()
        self.idle_blocks = 0  # that may be given up

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes) -> Entry | None:
        return self._entries.get(key)

    def of_block(self, block: int) -> Entry | None:
        return self._of_block.get(block)

    def find_beginning(self, parent: bytes, tokens: Sequence[int]) -> tuple[Entry | None, int]:
        """The block behind `parent` that agrees with `tokens` longest, and for how many; answers are told apart."""
        best, most = None, 0
        for entry in self._beginnings.get((parent, tokens[0]), ())[-CANDIDATES:] if tokens else ():
            ours = len(entry.tokens) - entry.answers
            count = next((i for i, (a, b) in enumerate(zip(entry.tokens, tokens, strict=False)) if a != b), len(tokens))
            count = min(count, ours)
            if count > most:
                best, most = entry, count
        return best, most

    def add(self, entry: Entry) -> None:
        """Publish a block that is held."""
        assert entry.key not in self._entries
        assert entry.block not in self._of_block
        self._entries[entry.key] = self._of_block[entry.block] = entry
        self._beginnings.setdefault((entry.parent, entry.tokens[0]), []).append(entry)

    def remove(self, entry: Entry) -> None:
        """Its content will change."""
        self.hold(entry)
        del self._entries[entry.key], self._of_block[entry.block]
        place = (entry.parent, entry.tokens[0])
        self._beginnings[place].remove(entry)
        if not self._beginnings[place]:
            del self._beginnings[place]

    def hold(self, entry: Entry) -> None:
        """A sequence has it, or it is being removed."""
        self._pinned_idle.discard(entry)
        level = self._idle.get(entry.priority)
        if level is not None and entry in level:
            del level[entry]
            self.idle_blocks -= 1
            if not level:
                del self._idle[entry.priority]

    def rest(self, entry: Entry) -> None:
        """No sequence has it any more."""
        if entry.pinned:
            self._pinned_idle.add(entry)
        else:
            self._idle.setdefault(entry.priority, OrderedDict())[entry] = None
            self.idle_blocks += 1

    def victim(self) -> Entry | None:
        """The one to give up next: of the lowest priority the one that is idle for the longest time."""
        return next(iter(self._idle[min(self._idle)])) if self._idle else None

    def idle(self) -> list[Entry]:
        """All that no sequence holds, those to give up first in front."""
        return [*(entry for level in sorted(self._idle) for entry in self._idle[level]), *self._pinned_idle]

    def __iter__(self) -> Iterator[Entry]:
        """All of them; they may be removed meanwhile."""
        return iter(list(self._entries.values()))
