"""Recent answers of the server, by salt: what one request was told, another may be told again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tandem.suffix_drafter import Match, SuffixIndex

SALTS = 64  # tenants whose texts are kept, the most recently used ones
BOUNDARY = -1  # between two texts; no token, so that no draft goes across


class SharedTexts:
    """Bounded: at most `max_tokens` tokens for each of the last `SALTS` salts."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._indexes: OrderedDict[str, SuffixIndex] = OrderedDict()

    def add(self, salt: str, tokens: Sequence[int]) -> None:
        """Keep an answer; the oldest half goes when there are too many."""
        index = self._indexes.setdefault(salt, SuffixIndex())
        self._indexes.move_to_end(salt)
        if len(self._indexes) > SALTS:
            self._indexes.popitem(last=False)
        if len(index.tokens) + len(tokens) > self._max_tokens:
            kept, index = index.tokens[-self._max_tokens // 2 :], SuffixIndex()
            index.extend(kept)
            self._indexes[salt] = index
        index.extend([*tokens[-self._max_tokens // 2 :], BOUNDARY])

    def find(self, salt: str, tail: Sequence[int]) -> Match | None:
        """The longest match of the end of `tail` in texts under the same salt."""
        index = self._indexes.get(salt)
        return None if index is None else index.find(tail)
