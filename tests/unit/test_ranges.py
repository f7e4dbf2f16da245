"""The ranges that Nsight Systems shows: nested, balanced, also when something fails."""

from __future__ import annotations

import pytest
from coordination import LocalTarget, make_loop, make_sequence

from tandem import ranges


class Domain:
    """Notes what is pushed and popped, as a profiler would."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[tuple[str, ...]] = []

    def push_range(self, name: str) -> None:
        self.open.append(name)
        self.seen.append(tuple(self.open))

    def pop_range(self) -> None:
        self.open.pop()


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Domain:
    noted = Domain()
    monkeypatch.setattr(ranges, "_DOMAIN", noted)
    for name in ("cycle", "propose", "forward", "accept"):
        monkeypatch.setattr(getattr(ranges, name.upper()), "_attributes", name)
    return noted


def test_a_pass_is_three_ranges_in_their_order(domain: Domain) -> None:
    loop = make_loop(LocalTarget())
    sequence, _ = make_sequence(1, [1, 2, 3], 1)
    loop._scheduler.add(sequence)
    while not sequence.ended:
        loop.cycle()
    assert domain.seen == [("propose",), ("forward",), ("accept",)]
    assert not domain.open


def test_passes_are_within_the_cycle_that_called_for_them(domain: Domain) -> None:
    loop = make_loop(LocalTarget())
    sequence, sink = make_sequence(1, [1, 2, 3], 2)
    loop.submit(sequence)
    loop.start()
    assert sink.ended.wait(90)
    loop.stop()
    assert ("cycle", "forward") in domain.seen
    assert not domain.open


def test_a_range_ends_with_an_error_too(domain: Domain) -> None:
    with pytest.raises(ValueError, match="fails"), ranges.FORWARD:
        raise ValueError("fails")
    assert not domain.open
