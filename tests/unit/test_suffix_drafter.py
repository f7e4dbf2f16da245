"""Suffix matching against its definition, computed by brute force."""

from hypothesis import given
from hypothesis import strategies as st

from tandem.suffix_drafter import CANDIDATES, KEY, LONGEST, SuffixIndex


def index_of(tokens: list[int]) -> SuffixIndex:
    index = SuffixIndex()
    index.extend(tokens)
    return index


def longest_match(tokens: list[int], tail: list[int]) -> int:
    """Tokens of the longest end of `tail` that occurs in `tokens` with something behind it."""
    best = 0
    for at in range(1, len(tokens)):
        length = 0
        while length < min(at, len(tail), LONGEST) and tokens[at - length - 1] == tail[-length - 1]:
            length += 1
        best = max(best, length)
    return best if best >= KEY else 0


@given(st.lists(st.integers(0, 3), max_size=40))
def test_the_longest_match_is_found(tokens: list[int]) -> None:
    match = index_of(tokens).find(tokens)
    wanted = longest_match(tokens, tokens)
    # Few symbols make more occurrences of a key than are compared; only then a longer match may be missed.
    if sum(tokens[at - KEY : at] == tokens[-KEY:] for at in range(KEY, len(tokens))) <= CANDIDATES:
        assert (match.length if match else 0) == wanted
    if match:
        assert tokens[match.at - match.length : match.at] == tokens[-match.length :]
        assert match.at < len(tokens)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=8))
def test_growing_piece_by_piece_is_the_same(start: list[int], pieces: list[list[int]]) -> None:
    index, text = index_of(start), list(start)
    for piece in pieces:
        index.extend(piece)
        text += piece
    whole, grown = index_of(text).find(text), index.find(text)
    assert (whole and (whole.at, whole.length)) == (grown and (grown.at, grown.length))


def test_of_equal_matches_the_newest_counts() -> None:
    match = index_of([1, 2, 3, 9, 1, 2, 4, 9, 9, 1, 2]).find([7, 1, 2])
    assert match is not None
    assert match.following(2) == [4, 9]


def test_a_longer_match_wins_over_a_newer_one() -> None:
    tokens = [5, 1, 2, 3, 9, 1, 2, 4, 9, 5, 1, 2]
    match = index_of(tokens).find(tokens)
    assert match is not None
    assert (match.length, match.following(3)) == (3, [3, 9, 1])


def test_what_follows_repeats_at_the_end_of_the_text() -> None:
    tokens = [8, 1, 2, 1, 2]
    match = index_of(tokens).find(tokens)
    assert match is not None
    assert match.following(5) == [1, 2, 1, 2, 1]


def test_another_text_can_be_continued() -> None:
    match = index_of([1, 2, 3, 4, 5]).find([9, 9, 3, 4])
    assert match is not None
    assert (match.length, match.following(1)) == (2, [5])
    assert index_of([1, 2, 3]).find([2, 3]) is None, "nothing stands behind it"
    assert index_of([]).find([]) is None
    assert index_of([1]).find([1]) is None


def test_the_index_holds_few_places_of_each_key() -> None:
    """Else a lookup in a long text of one token would take longer and longer."""
    index = index_of([1] * 5000)
    assert max(len(ends) for ends in index._ends.values()) <= CANDIDATES + 1
