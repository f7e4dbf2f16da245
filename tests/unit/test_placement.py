"""Where requests go: chats stay together, load is even, shared prefixes spread, and what was lost is not counted on."""

from __future__ import annotations

import random

import pytest

from tandem.placement import PIECE, SEQUENCE_TOKENS, Placement


def prompt(seed: int, tokens: int) -> list[int]:
    return random.Random(seed).choices(range(40_000), k=tokens)


def best(placement: Placement, tokens: list[int], loads: list[int], salt: str = "") -> int:
    """Place a prompt as the coordinator does."""
    replica = placement.order(tokens, salt, loads)[0]
    placement.place(tokens, salt, replica)
    return replica


def test_the_turns_of_a_chat_go_to_the_replica_that_has_them() -> None:
    placement = Placement(4)
    chats = [prompt(seed, 200) for seed in range(12)]
    homes = [best(placement, chat, [0] * 4) for chat in chats]
    assert sorted(set(homes)) == [0, 1, 2, 3], "chats that share nothing take turns"
    for _ in range(5):
        for index in random.Random(0).sample(range(12), 12):
            chats[index] = chats[index] + prompt(index + 100, 60)
            assert best(placement, chats[index], [0] * 4) == homes[index]


def test_a_replica_with_more_to_do_is_passed_by_as_soon_as_computing_anew_is_less_work() -> None:
    placement = Placement(2)
    tokens = prompt(1, 10 * SEQUENCE_TOKENS)
    home = best(placement, tokens, [0, 0])
    other = 1 - home
    loads = [0, 0]
    loads[home] = 9
    assert placement.order(tokens, "", loads) == [home, other]
    loads[home] = 11
    assert placement.order(tokens, "", loads) == [other, home]


@pytest.mark.parametrize("shared", [0, 2000])
def test_work_is_spread_even_if_all_prompts_begin_alike(shared: int) -> None:
    """With a shared prefix one replica takes all, until its load is worth the prefix; then both have it."""
    placement, loads = Placement(2), [0, 0]
    head = prompt(0, shared)
    for number in range(200):
        loads[best(placement, head + prompt(number + 1, 40), loads)] += 1
    assert sum(loads) == 200
    assert abs(loads[0] - loads[1]) <= 1 + shared / SEQUENCE_TOKENS


def test_another_salt_has_nothing() -> None:
    placement = Placement(2)
    tokens = prompt(1, 500)
    placement.place(tokens, "a", 1)
    for _ in range(4):
        assert placement.order(tokens, "a", [0, 0])[0] == 1
    assert {placement.order(tokens, "b", [0, 0])[0] for _ in range(4)} == {0, 1}


def test_what_a_replica_lost_is_forgotten_and_what_others_have_is_not() -> None:
    placement = Placement(3)
    tokens = prompt(1, 500)
    placement.place(tokens, "", 1)
    placement.place(tokens, "", 2)
    placement.forget(1)
    assert {placement.order(tokens, "", [0, 0, 0])[0] for _ in range(6)} == {2}
    placement.forget(2)
    assert {placement.order(tokens, "", [0, 0, 0])[0] for _ in range(6)} == {0, 1, 2}


def test_only_whole_pieces_of_one_beginning_count() -> None:
    """A prompt with the same middle but another beginning has nothing in common: K and V depend on what is before."""
    placement = Placement(2)
    tokens = prompt(1, 10 * PIECE)
    placement.place(tokens, "", 1)
    assert {placement.order([7, *tokens[1:]], "", [0, 0])[0] for _ in range(4)} == {0, 1}
    longest = placement.order(tokens[: 3 * PIECE] + prompt(2, 5 * PIECE), "", [0, 1])
    assert longest == [1, 0], "three pieces are worth more than one sequence"
    assert placement.order(tokens[:PIECE], "", [0, 1]) == [0, 1], "one piece is not"


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    placement = Placement(2, remembered=50)
    first, last = prompt(1, 20 * PIECE), prompt(99, 20 * PIECE)
    for seed in range(1, 100):
        placement.place(prompt(seed, 20 * PIECE), "", 1)
    assert len(placement._places) == 50
    assert placement.order(last, "", [1, 2]) == [1, 0]
    assert placement.order(first, "", [1, 2]) == [0, 1]
