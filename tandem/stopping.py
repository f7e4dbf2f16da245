"""Stop words found in streamed text, wherever the text is cut into pieces.

All words are searched at once by an Aho-Corasick automaton (Aho and Corasick, "Efficient string matching",
1975): its state stands for the longest end of the text that begins a word, which is exactly the text that
must be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class _Node:
    """A state of the automaton: the text of one beginning of a word."""

    __slots__ = ("depth", "fallback", "matched", "next")

    def __init__(self, depth: int) -> None:
        self.depth = depth  # characters
        self.next: dict[str, _Node] = {}
        self.fallback: _Node | None = None  # the longest proper end of the text that begins a word, if there is one
        self.matched = 0  # length of the longest word that the text ends with


class StopMatcher:
    """Looks for the first stop word in a text that arrives in pieces.

    The text stops at the character that completes a word, as generation does; of several words that end there
    the longest counts. So of "abcd" and "bc", the text "abcd" stops at "bc" and leaves "a".
    """

    __slots__ = ("_held", "_node", "_start", "stopped")

    def __init__(self, words: Sequence[str]) -> None:
        """Raises ValueError if a word is empty."""
        if "" in words:
            raise ValueError("words: a stop word is empty")
        self._start = self._node = _automaton(words)
        self._held = ""  # the text of the current node
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece of the text.

        Returns:
            The text that is now known to come before any stop word, and whether a word was found. The word itself is
            never returned, nor is anything after it.
        """
        if self.stopped:
            return "", True
        node, start = self._node, self._start
        if not start.next:
            return text, False
        for index, character in enumerate(text):
            while character not in node.next and node.fallback is not None:
                node = node.fallback
            node = node.next.get(character, start)
            if node.matched:
                self.stopped = True
                known = self._held + text[: index + 1]
                self._held = ""
                return known[: len(known) - node.matched], True
        self._node = node
        known = self._held + text
        self._held = known[len(known) - node.depth :]
        return known[: len(known) - node.depth], False

    def flush(self) -> str:
        """The text still held back, at the end of the text; "" after a stop word."""
        held, self._held, self._node = self._held, "", self._start
        return held


def _automaton(words: Sequence[str]) -> _Node:
    start = _Node(0)
    for word in words:
        node = start
        for character in word:
            node = node.next.setdefault(character, _Node(node.depth + 1))
        node.matched = len(word)
    queue = deque([start])
    while queue:  # breadth first: a fallback is shorter, so it is complete
        node = queue.popleft()
        for character, child in node.next.items():
            fallback = node.fallback
            while fallback is not None and character not in fallback.next:
                fallback = fallback.fallback
            child.fallback = start if fallback is None else fallback.next[character]
            child.matched = child.matched or child.fallback.matched
            queue.append(child)
    return start
