"""Measuring quality: perplexity is what its formula says, and the choice is the fastest of the good ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from table_engine import TableEngine, table_logits

from build_engines import quality
from build_engines.perplexity import perplexity, windows
from build_engines.quality import Result
from build_engines.recipe import Recipe


def test_windows_are_spaced_over_the_whole_text() -> None:
    found = windows(range(100), 3, 20)
    assert [(window[0], window[-1], len(window)) for window in found] == [(0, 19, 20), (40, 59, 20), (80, 99, 20)]


def test_text_too_short_for_its_windows() -> None:
    with pytest.raises(ValueError, match="59 tokens are too few for 3 windows of 20"):
        windows(range(59), 3, 20)


@pytest.mark.parametrize("length", [2, 64, 65, 150])
def test_perplexity_is_that_of_the_formula(length: int) -> None:
    """Whatever the pieces in which texts are fed."""
    engine = TableEngine()
    texts = np.random.default_rng(0).integers(0, engine.vocab_size, (6, length)).tolist()
    likelihoods = []
    for text in texts:
        for position in range(1, length):
            logits = table_logits(text[:position], engine.vocab_size).astype(float)
            likelihoods.append(logits[text[position]] - np.log(np.exp(logits).sum()))
    assert perplexity(engine, texts) == pytest.approx(math.exp(-np.mean(likelihoods)), rel=1e-5)


def result(perplexity_: float, *speeds: float, kv_cache: str = "f16") -> Result:
    return Result(
        Recipe("int8", kv_cache=kv_cache, dynamic_quantization_group=64),
        1.0,
        perplexity_,
        dict(zip(quality.STREAMS, speeds, strict=True)),
        1.0,
    )


def test_fastest_within_one_percent_is_chosen() -> None:
    reference = result(10.0, 1, 1, 1)
    good, better, spoiled = result(10.09, 5, 5, 5), result(10.0, 4, 6, 4), result(10.11, 9, 9, 9)
    assert quality.choose([reference, good, better, spoiled]) is good
    assert quality.choose([reference, spoiled]) is reference
    assert quality.choose([reference, result(10.0, 9, 9, 9, kv_cache="u8")]) is reference


def test_table_marks_the_chosen_row() -> None:
    rows = quality.table([result(10.0, 1, 2, 3), chosen := result(10.05, 4, 5, 6)], chosen).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert rows[-1].startswith("| **int8 / f32 / f16, DQ 64** | **1** | **10.050** | **+0.50%** | **4** |")
