"""From a classifier's logits to what people ask for: probabilities, and the names of the likeliest classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tandem.errors import InvalidRequest


class Ranking(NamedTuple):
    """Of N images."""

    scores: npt.NDArray[np.float32]
    """[N, classes], the probability of each class."""
    top_labels: npt.NDArray[np.object_]
    """[N, k], names as UTF-8, the likeliest first."""
    top_scores: npt.NDArray[np.float32]
    """[N, k], their probabilities."""


class Ranker:
    """Names classes.

    Args:
        labels: of all classes, in the order of the logits.
    """

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = np.array([label.encode() for label in labels], dtype=np.object_)

    def rank(self, logits: npt.NDArray[np.float32], k: int) -> Ranking:
        """The `k` likeliest classes of each image; of equally likely ones the first comes first.

        Args:
            logits: [N, classes].
            k: at least 1; more than there are classes means all.

        Raises:
            InvalidRequest: `k` is less than 1.
        """
        if k < 1:
            raise InvalidRequest(f"top_k: is {k}; it must be at least 1")
        scores = softmax(logits)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        return Ranking(scores, self._labels[best], np.take_along_axis(scores, best, axis=1))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Probabilities [N, classes] of logits [N, classes]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
