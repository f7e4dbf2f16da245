"""Logits → probabilities and names."""

import numpy as np
import pytest

from tandem.errors import InvalidRequest
from tandem.vision.ranking import Ranker, softmax

LABELS = ("ant", "bée", "cat", "dog")
LOGITS = np.array([[0.0, 2.0, 1.0, 2.0], [1e4, -1e4, 0.0, 9999.0]], np.float32)


def test_likeliest_first_and_of_equals_the_first():
    ranking = Ranker(LABELS).rank(LOGITS, 3)
    assert ranking.top_labels.tolist() == [["bée".encode(), b"dog", b"cat"], [b"ant", b"dog", b"cat"]]
    assert ranking.scores.dtype == ranking.top_scores.dtype == np.float32
    assert ranking.scores.sum(axis=1) == pytest.approx([1, 1])
    assert (ranking.top_scores == np.take_along_axis(ranking.scores, np.array([[1, 3, 2], [0, 3, 2]]), axis=1)).all()
    assert ranking.scores[0] == pytest.approx(np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum())


def test_how_many():
    ranker = Ranker(LABELS)
    assert ranker.rank(LOGITS, 1).top_labels.shape == (2, 1)
    assert ranker.rank(LOGITS, 100).top_labels.shape == (2, 4)
    with pytest.raises(InvalidRequest, match="top_k: is 0"):
        ranker.rank(LOGITS, 0)


def test_large_logits_do_not_overflow():
    assert softmax(LOGITS)[1] == pytest.approx([1 / (1 + np.exp(-1)), 0, 0, np.exp(-1) / (1 + np.exp(-1))])
