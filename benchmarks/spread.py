"""A median and its spread, as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def with_range(values: Iterable[float], digits: int) -> str:
    """Median (smallest to largest); of one value, that value."""
    found = list(values)
    text = f"{statistics.median(found):.{digits}f}"
    return f"{text} ({min(found):.{digits}f}–{max(found):.{digits}f})" if len(found) > 1 else text


def with_quartiles(values: Iterable[float], digits: int) -> str:
    """Median (first to third quartile), where there are enough values that the extremes say little.

    Raises:
        statistics.StatisticsError: there are fewer than two values.
    """
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def median_certain(values: Iterable[float], digits: int) -> str:
    """The range that the median of all such values is in with 95 % certainty, whatever their distribution.

    By order statistics: of n values about n / 2 ± 0.98 √n are below it (Conover, "Practical Nonparametric Statistics").
    """
    found = sorted(values)
    place = max(0, math.floor(len(found) / 2 - 0.98 * math.sqrt(len(found))))
    return f"{found[place]:.{digits}f}–{found[-1 - place]:.{digits}f}"
