"""Which tokens a drafter can propose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def most_frequent(
    tokens: npt.NDArray[np.int32], size: int, vocab_size: int, always: Sequence[int]
) -> npt.NDArray[np.int32]:
    """The `size` most frequent ids of `tokens`, the most frequent first, after those of `always`.

    Where too few occur, the lowest ids fill up: a byte-pair encoding learns frequent tokens first.
    """
    counts = np.bincount(tokens, minlength=vocab_size)
    counts[list(always)] = len(tokens) + 1
    return np.argsort(-counts, kind="stable")[:size].astype(np.int32)


def candidates(
    tokens: npt.NDArray[np.int64], by_frequency: npt.NDArray[np.int32], count: int, source: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Ids to compare a batch over: all that occur in it, the most frequent ones, and others at random.

    Args:
        tokens: ids of the batch.
        by_frequency: every id of the drafter's vocabulary, the most frequent first.
        count: how many to return at most, unless more occur in the batch.
    """
    present = np.intersect1d(tokens, by_frequency)
    chosen = np.union1d(present, by_frequency[: count // 2])
    rest = np.setdiff1d(by_frequency, chosen)
    extra = min(len(rest), max(0, count - len(chosen)))
    return np.concatenate([chosen, source.choice(rest, extra, replace=False)]).astype(np.int64)
