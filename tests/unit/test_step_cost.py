"""The cost curve of a step: what it says between its points, and how it follows the machine."""

import random

import pytest

from tandem.step_cost import PATIENCE, REPEATS, StepCost, profile


def test_between_and_beyond_the_points_the_curve_is_linear() -> None:
    cost = StepCost([2, 4, 8], [10.0, 12.0, 20.0])
    assert [cost(width) for width in (1, 2, 3, 4, 6, 8, 12)] == pytest.approx([10, 10, 11, 12, 16, 20, 28])


def test_a_wider_step_is_never_taken_for_a_cheaper_one() -> None:
    cost = StepCost([2, 4, 8], [10.0, 9.0, 20.0])
    assert cost(4) == 10.0


def observe(cost: StepCost, width: int, seconds: float, times: int = 5) -> None:
    for _ in range(times):
        cost.observe(width, seconds)


def test_a_slower_machine_changes_the_height_and_not_the_shape() -> None:
    cost = StepCost([2, 4, 8], [10.0, 12.0, 20.0])
    for _ in range(30):
        for width, seconds in ((2, 30.0), (4, 36.0), (8, 60.0)):
            observe(cost, width, seconds)
    assert cost(2) == pytest.approx(30, rel=0.02)
    assert cost(8) / cost(2) == pytest.approx(2, rel=0.02)


def test_the_shape_is_learned_where_widths_alternate() -> None:
    cost = StepCost([2, 4, 8], [10.0, 12.0, 20.0])
    for _ in range(150):
        observe(cost, 2, 10.0)
        observe(cost, 8, 40.0)
    assert cost(8) / cost(2) == pytest.approx(4, rel=0.1)


def test_one_width_alone_does_not_move_the_shape() -> None:
    """Nor hide its error: what then comes of another width corrects it."""
    cost = StepCost([2, 4, 8], [12.0, 12.0, 20.0], ready=8)
    observe(cost, 4, 24.0, times=500)
    assert cost(4) == pytest.approx(24, rel=0.01)
    assert cost(4) / cost(2) == pytest.approx(1, rel=0.1)
    for _ in range(40):
        cost.observe(2, 16.0)
        observe(cost, 4, 24.0, times=50)
    assert cost(4) / cost(2) == pytest.approx(1.5, rel=0.03)


def test_widths_that_are_in_use_do_not_move_against_those_that_are_not() -> None:
    """First steps that are always slower, and noise: nothing of that is a reason to think that a wide step is cheap."""
    cost = StepCost([2, 4, 8, 48], [10.0, 12.0, 20.0, 70.0], ready=48)
    rng = random.Random(1)
    for _ in range(3000):
        for width, seconds in ((2, 10.0), (4, 12.0)):
            cost.observe(width, seconds * 1.1 * rng.lognormvariate(0, 0.1))
            observe(cost, width, seconds * rng.lognormvariate(0, 0.1), times=2)
    assert cost(48) / cost(2) == pytest.approx(7, rel=0.1)
    assert cost(4) / cost(2) == pytest.approx(1.2, rel=0.1)


def test_the_first_step_of_a_width_tells_of_the_change_only() -> None:
    cost = StepCost([2, 4], [10.0, 12.0], change=1.0)
    for _ in range(400):
        cost.observe(2, 15.0)
        cost.observe(4, 17.0)
    assert (cost(2), cost(4)) == (10.0, 12.0)
    assert cost.expected(4) == 12.0, "it is as wide as the last one"
    assert cost.expected(2) == pytest.approx(10 + 5 / PATIENCE, rel=0.01)
    assert cost.expected(2, rows=16) == pytest.approx(10 + 5, rel=0.01), "a batch does not keep its width for long"


def test_where_the_engine_has_graphs_steps_are_as_wide_as_those_and_may_change() -> None:
    cost = StepCost([2, 4, 8, 16], [10.0, 12.0, 20.0, 40.0], change=5.0, ready=8)
    cost.observe(2, 10.0)
    assert [cost(width) for width in (1, 3, 5, 8)] == [10, 12, 20, 20]
    assert cost.expected(5, rows=4) == 20.0
    assert cost.expected(16, rows=4) == 45.0, "no graph"
    for _ in range(150):
        cost.observe(2, 10.0)
        cost.observe(8, 40.0)
    assert cost(8) / cost(2) == pytest.approx(4, rel=0.1), "each step counts, though the width always changes"


def test_widths_with_drafts_are_few() -> None:
    cost = StepCost([2, 4, 8], [1.0, 1.0, 1.0])
    assert cost.wider(1, 5) == [2, 4, 8]
    assert cost.wider(2, 4) == [4]
    assert cost.wider(3, 3) == []
    assert cost.wider(8, 20) == []


def test_an_outlier_moves_little() -> None:
    cost = StepCost([2, 4], [10.0, 12.0])
    observe(cost, 2, 5000.0, times=2)
    assert cost(2) < 11.5
    assert cost.expected(4) < 13.2


def test_a_profile_takes_the_fastest_steps_and_the_first_for_the_change() -> None:
    calls: list[int] = []

    def run(width: int) -> float:
        calls.append(width)
        change = 3.0 if calls[-2:] != [width, width] else 0.0
        return width + change + (50.0 if len(calls) % 3 == 0 else 0.0)

    cost = profile(run, rounds=2, widths=[2, 4, 8])
    assert calls[: 2 * REPEATS] == [2] * REPEATS + [4] * REPEATS
    assert (cost(2), cost(4), cost(8)) == (2.0, 4.0, 8.0)
    assert cost.expected(4) == 4.0 + 3.0 / PATIENCE
