"""The compiled choice of draft tokens: the target's noise on the drafter's logits, over its part of the vocabulary.

The choice is `argmax(z + gumbel(seed, position, id))` with z = (logit - largest logit) / temperature, as
`tandem.sampling` does it after penalties and cuts. Those are left out here: a draft that they forbid is not accepted,
and costs nothing else.

The functions on logits and noise are those of `tandem.sampling_kernels`. A cache of this file's machine code does not
notice when they change; what they compute is fixed by `tandem.noise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tandem.compilation import compiled
from tandem.sampling_kernels import (
    BLOCK,
    INFINITY_KEY,
    MASS_END,
    MIN_NOISE,
    NOISE_BOUNDS,
    NOISE_STEPS,
    U0,
    _block_keys,
    _first_of,
    _logit,
    _mix,
    _noise_key,
    _size,
    _value,
    mass,
    noise,
)

MAX_NOISE = 36.8


@compiled
def _top_word(offsets: Any, start: Any, size: Any, noise_key: Any) -> Any:
    """The largest hash word of the tokens of a block."""
    top = U0
    for i in range(size):
        top = max(top, _mix(noise_key + offsets[np.uint64(start) + np.uint64(i)]))
    return top


@compiled
def _choose(bits: Any, keys: Any, offsets: Any, top: Any, scale: Any, noise_key: Any, first: Any) -> Any:
    """The column with the largest z + noise; `first` is the one with the largest logit."""
    chosen = first
    best = noise(_mix(noise_key + offsets[first]))
    for block in range(len(keys)):
        gap = best - (_value(keys[block]) - top) * scale  # what the noise must add
        if gap > MAX_NOISE:
            continue
        bound = NOISE_BOUNDS[int((gap - MIN_NOISE) * NOISE_STEPS)]
        start, size = block * BLOCK, _size(block, len(bits))
        word = _top_word(offsets, start, BLOCK, noise_key) if size == BLOCK else ~U0
        if word < bound:
            continue
        for column in range(start, start + size):
            word = _mix(noise_key + offsets[column])
            if word < bound:
                continue
            score = (_logit(bits[column]) - top) * scale + noise(word)
            if score > best or (score == best and column < chosen):
                best, chosen = score, column
    return chosen


@compiled
def _total(bits: Any, start: Any, size: Any, top: Any, scale: Any) -> Any:
    """Mass of a block; whole numbers, whose sum the compiler may vectorize."""
    total = np.int64(0)
    for i in range(size):
        total += mass((_logit(bits[np.uint64(start) + np.uint64(i)]) - top) * scale)
    return total


@compiled
def _probability(bits: Any, keys: Any, top: Any, scale: Any, chosen: Any) -> Any:
    """Share of `chosen` in the softmax of the row."""
    total = np.int64(0)
    for block in range(len(keys)):
        if (_value(keys[block]) - top) * scale < MASS_END:
            continue
        size = _size(block, len(bits))
        if size == BLOCK:
            total += _total(bits, block * BLOCK, BLOCK, top, scale)
        else:
            total += _total(bits, block * BLOCK, size, top, scale)
    return np.float64(mass((_logit(bits[chosen]) - top) * scale)) / np.float64(total)


@compiled
def choose_drafts(
    logits: Any, offsets: Any, scales: Any, positions: Any, seeds: Any, keys: Any, columns: Any, confidences: Any
) -> None:
    """Choose a column per row; -1 where a row holds NaN or infinity.

    Args:
        logits: the bits of float32 logits, int32 [n, columns].
        offsets: uint64 [columns], (id + 1) * GAMMA of every column's token; ids ascend.
        scales: float64 [n], 1 / temperature (0: greedy).
        positions: int64 [n], absolute index of the token that is drafted.
        seeds: uint64 [n].
        keys: int32 [blocks of BLOCK columns], scratch.
        columns: int32 [n], written.
        confidences: float32 [n], written: the chosen token's probability at the row's temperature (greedy: at 1).
    """
    for row in range(len(scales)):
        bits = logits[row]
        columns[row], confidences[row] = -1, 0.0
        top_key, low_key = _block_keys(bits, keys)
        if top_key >= INFINITY_KEY or low_key <= -INFINITY_KEY:
            continue
        top, scale = _value(top_key), scales[row]
        chosen = _first_of(bits, keys, top_key)
        if scale > 0.0:
            chosen = _choose(bits, keys, offsets, top, scale, _noise_key(seeds[row], positions[row]), chosen)
        columns[row] = chosen
        confidences[row] = _probability(bits, keys, top, scale if scale > 0.0 else 1.0, chosen)
