"""How Python functions are compiled to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """`numba.njit` without the GIL and without `fastmath`; division by zero gives inf or NaN.

    The machine code is cached next to the source, else in the user's cache, and not at all where neither can be
    written. numba notices a stale cache by the file of the outermost function only: keep functions that call each
    other in one file.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # no place to write to
        return njit(function, **options)
