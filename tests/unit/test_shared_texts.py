"""Answers shared between requests: only under the same salt, bounded, and never across two texts."""

from tandem.shared_texts import BOUNDARY, SALTS, SharedTexts


def test_texts_are_found_under_their_salt_only() -> None:
    texts = SharedTexts(100)
    texts.add("a", [1, 2, 3, 4])
    match = texts.find("a", [9, 2, 3])
    assert match is not None
    assert match.following(1) == [4]
    assert texts.find("b", [9, 2, 3]) is None
    assert texts.find("", [9, 2, 3]) is None


def test_no_draft_goes_from_one_text_into_the_next() -> None:
    texts = SharedTexts(100)
    texts.add("", [1, 2, 3])
    texts.add("", [4, 5, 6])
    match = texts.find("", [2, 3])
    assert match is not None
    assert match.following(2)[0] == BOUNDARY, "which the executor cuts off"
    assert texts.find("", [3, 4]) is None


def test_what_is_kept_is_bounded() -> None:
    texts = SharedTexts(100)
    for start in range(50):
        texts.add("", list(range(start * 10, start * 10 + 10)))
        assert len(texts._indexes[""].tokens) <= 100
    assert texts.find("", [497, 498]) is not None
    assert texts.find("", [17, 18]) is None
    texts.add("", list(range(1000)))
    assert len(texts._indexes[""].tokens) <= 101


def test_the_salts_are_bounded() -> None:
    texts = SharedTexts(100)
    for number in range(SALTS + 5):
        texts.add(str(number), [1, 2, 3])
    assert len(texts._indexes) == SALTS
    assert texts.find("0", [1, 2]) is None
    assert texts.find(str(SALTS + 4), [1, 2]) is not None
