"""Two targets behind one coordinator: the turns of a chat stay where their prompt is kept, from the first one on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from coordination import Collector, LocalTarget, letters_coordinator

from tandem.coordinator import Coordinator

WAIT_S = 90


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    coordinator = letters_coordinator(tmp_path, [LocalTarget(), LocalTarget()])
    coordinator.start()
    yield coordinator
    coordinator.stop()


def replica_of(coordinator: Coordinator, text: str, **fields: object) -> int:
    request = coordinator.parse(
        {"text_input": [text.encode()], "max_tokens": [4], **{k: [v] for k, v in fields.items()}}
    )
    sink = Collector()
    sequence, _ = coordinator.prepare(request, sink)
    coordinator.submit(request, sequence)
    assert sink.ended.wait(WAIT_S)
    return sequence.replica


def test_the_second_turn_of_the_very_first_chat_goes_where_the_first_went(coordinator: Coordinator) -> None:
    chats = ["A" * 40, "B" * 40]
    first = replica_of(coordinator, chats[0])
    assert replica_of(coordinator, chats[0] + "CD") == first, "what takes turns would go to the other"
    second = replica_of(coordinator, chats[1])
    assert [replica_of(coordinator, chat + "CD") for chat in chats] == [first, second]


def test_a_request_that_skips_the_cache_is_not_remembered(coordinator: Coordinator) -> None:
    """The same text takes turns, as nobody has it."""
    found = [replica_of(coordinator, "A" * 40, cache_skip=True) for _ in range(4)]
    assert sorted(found) == [0, 0, 1, 1]
