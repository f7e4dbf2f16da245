"""A drafter that costs nothing: what followed the last time the text ended like this (prompt lookup).

After Saxena, "Prompt lookup decoding" (2023), and SAM decoding (Hu et al., 2024): the longest suffix of the sequence
that occurs earlier in it is looked up, and what stands behind it is proposed. Copying and editing profit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KEY = 2  # tokens of the shortest match
CANDIDATES = 8  # occurrences of a key that are compared, the newest first
LONGEST = 32  # tokens of a match that are counted


@dataclass(frozen=True, slots=True)
class Match:
    """Where the end of a text occurs: `tokens[:at]` of `source` ends with the same `length` tokens."""

    source: Sequence[int]
    at: int
    length: int

    def following(self, count: int) -> list[int]:
        """The `count` tokens behind the match; where they reach the end of the source, they repeat from the match."""
        period = len(self.source) - self.at
        return [self.source[self.at + index % period] for index in range(count)]


class SuffixIndex:
    """An index over a text that only grows; adding a token and looking up take a time that does not depend on it."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # key -> positions behind its newest occurrences

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens at the end."""
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            if end >= KEY:
                ends = self._ends.setdefault(tuple(self.tokens[end - KEY :]), [])
                ends.append(end)
                if len(ends) > CANDIDATES + 1:
                    del ends[0]

    def find(self, tail: Sequence[int]) -> Match | None:
        """The longest match of the end of `tail`, of equals the newest; None if not even `KEY` tokens match.

        Args:
            tail: the end of the text to continue. It may be this text itself: its own end is no match.
        """
        best: Match | None = None
        tokens = self.tokens
        for at in reversed(self._ends.get(tuple(tail[-KEY:]), ())):
            if at == len(tokens):
                continue
            length, limit = KEY, min(at, len(tail), LONGEST)
            while length < limit and tokens[at - length - 1] == tail[-length - 1]:
                length += 1
            if best is None or length > best.length:
                best = Match(tokens, at, length)
        return best
