"""The judgement over a soak run notices what must not be."""

from __future__ import annotations

from collections import Counter

import pytest
from soak_report import Clients, Sample, problems, table

ALL = {"finished": 9, "cancelled": 9, "left": 9, "refused": 9, "timed out": 9, "queue full": 9}
NOTHING = {"kv_blocks_used": 0.0}


def samples(memory_at_s, seconds: int = 400) -> list[Sample]:
    return [Sample(at, {"generate": memory_at_s(at)}, NOTHING) for at in range(1, seconds + 1)]


def clients(**changes: Counter[str]) -> Clients:
    return Clients(**({"outcomes": Counter(ALL)} | changes))


def test_a_run_in_order():
    steady = samples(lambda at: 200 + (at % 7))
    assert problems(clients(), steady, NOTHING) == []
    assert "generate" in table(clients(), steady)


def test_memory_that_settles_after_the_first_quarter_is_no_growth():
    assert problems(clients(), samples(lambda at: 200 if at > 100 else 2 * at), NOTHING) == []


def test_one_high_sample_is_no_growth():
    assert problems(clients(), samples(lambda at: 900 if at == 395 else 200), NOTHING) == []


def test_growth_is_noticed():
    (found,) = problems(clients(), samples(lambda at: 200 + 0.1 * at), NOTHING)
    assert found == "memory of generate grew from 215.0 to 235.0 MB"


@pytest.mark.parametrize("name", ALL)
def test_a_run_in_which_something_never_happened_is_no_proof(name):
    (found,) = problems(clients(outcomes=Counter(ALL | {name: 0})), samples(lambda _: 200), NOTHING)
    assert found.startswith(f"no request was {name}")


def test_what_is_left_and_errors_are_noticed():
    seen = clients(unexpected=Counter({"read_all: hangs": 2}))
    assert problems(seen, samples(lambda _: 200), {"kv_blocks_used": 3}) == [
        "2 x read_all: hangs",
        "kv_blocks_used is 3 at the end",
    ]
