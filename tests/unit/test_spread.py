"""Medians with their spread, as the benchmarks print them."""

from benchmarks.spread import with_quartiles, with_range


def test_the_range_is_that_of_all_values() -> None:
    assert with_range([3.0, 1.0, 2.0], 1) == "2.0 (1.0–3.0)"


def test_one_value_has_no_range() -> None:
    assert with_range([3.0], 2) == "3.00"


def test_quartiles_leave_the_extremes_out() -> None:
    assert with_quartiles([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, -100.0], 0) == "3 (1–5)"
