"""Medians with their spread, as the benchmarks print them."""

from benchmarks.spread import median_certain, with_quartiles, with_range


def test_the_range_is_that_of_all_values() -> None:
    assert with_range([3.0, 1.0, 2.0], 1) == "2.0 (1.0–3.0)"


def test_one_value_has_no_range() -> None:
    assert with_range([3.0], 2) == "3.00"


def test_quartiles_leave_the_extremes_out() -> None:
    assert with_quartiles([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, -100.0], 0) == "3 (1–5)"


def test_the_median_is_known_the_better_the_more_values_there_are():
    assert median_certain(range(100), 0) == "40–59"
    assert median_certain(range(400), 0) == "180–219"
    assert median_certain([3.0, 1.0, 2.0], 0) == "1–3"
