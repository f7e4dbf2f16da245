"""Stop words against a whole-text reference, for any cutting of the text into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.stopping import StopMatcher

LETTERS = st.text("ab", max_size=40)
WORDS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def reference(text: str, words: list[str]) -> tuple[str, bool]:
    """What comes before the first completed word, and whether there is one."""
    for end in range(1, len(text) + 1):
        lengths = [len(word) for word in words if text[:end].endswith(word)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def held_back(text: str, words: list[str]) -> str:
    """The longest end of the text that may still become a word."""
    starts = {word[:length] for word in words for length in range(1, len(word))}
    return max((text[i:] for i in range(len(text)) if text[i:] in starts), key=len, default="")


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(LETTERS, WORDS, st.lists(st.integers(0, 100)))
def test_any_cutting_gives_the_text_before_the_first_word(text: str, words: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(words)
    emitted, stopped, seen = "", False, ""
    for piece in pieces(text, cuts):
        new, stopped = matcher.push(piece)
        emitted += new
        seen += piece
        assert stopped is matcher.stopped
        if stopped:
            break
        assert emitted + held_back(seen, words) == seen
    assert (emitted + matcher.flush(), stopped) == reference(text, words)


@given(LETTERS, WORDS)
def test_nothing_comes_after_a_stop(text: str, words: list[str]) -> None:
    matcher = StopMatcher([*words, "c"])
    matcher.push("c")
    assert matcher.push(text) == ("", True)
    assert matcher.flush() == ""


def test_examples() -> None:
    assert StopMatcher(["User:"]).push("Hi.\nUser: x") == ("Hi.\n", True)
    assert StopMatcher(["abcd", "bc"]).push("abcd") == ("a", True)
    assert StopMatcher(["bc", "abc"]).push("xabc") == ("x", True)
    assert StopMatcher([]).push("text") == ("text", False)
    matcher = StopMatcher(["\n\n", "日本語"])
    assert [matcher.push(text) for text in ("a\n", "b日", "本", "x日本", "語")] == [
        ("a", False),
        ("\nb", False),
        ("", False),
        ("日本x", False),
        ("", True),
    ]


def test_text_held_back_comes_with_flush() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("sto") == ("", False)
    assert matcher.flush() == "sto"
    assert matcher.push("p") == ("p", False)


def test_an_empty_word_is_refused() -> None:
    with pytest.raises(ValueError, match="words: "):
        StopMatcher(["a", ""])
