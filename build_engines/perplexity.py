"""Perplexity of an engine, taken through the paged cache as a server would use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tandem.engines import Engine, Row

WINDOW = 512
_CHUNK = 64  # a window is fed in pieces, so that most of what is attended to comes out of the cache
_ROWS = 4
_END = -1  # what follows the last token of a text


def windows(tokens: Sequence[int], count: int, length: int = WINDOW) -> list[list[int]]:
    """`count` windows of `length` tokens, evenly spaced over the text, the first one at its beginning.

    Raises `ValueError` if the text is too short for windows that do not overlap.
    """
    if len(tokens) < count * length:
        raise ValueError(f"{len(tokens)} tokens are too few for {count} windows of {length}")
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return [list(tokens[start : start + length]) for start in starts]


def perplexity(
    engine: Engine, texts: Sequence[Sequence[int]], advance: Callable[[int], object] = lambda done: None
) -> float:
    """exp of the mean negative log-likelihood (nats) of every token but the first of each text.

    `texts`: token ids, all of one length; several run as rows of one batch. `advance` is told the tokens done.
    """
    blocks_each = -(-len(texts[0]) // engine.block_size)
    rows = min(_ROWS, engine.num_blocks // blocks_each)
    if rows == 0:
        raise ValueError(f"{engine.num_blocks} blocks are too few for a text of {len(texts[0])} tokens")
    total, counted = 0.0, 0
    for first in range(0, len(texts), rows):
        group = texts[first : first + rows]
        tables = [range(index * blocks_each, (index + 1) * blocks_each) for index in range(len(group))]
        for past in range(0, len(group[0]), _CHUNK):
            chunks = [text[past : past + _CHUNK] for text in group]
            logits = engine.forward(
                [Row(chunk, past, table, len(chunk)) for chunk, table in zip(chunks, tables, strict=True)]
            )
            targets = np.concatenate([[*text[past + 1 : past + 1 + _CHUNK], _END][:_CHUNK] for text in group])
            wanted = np.flatnonzero(targets != _END)
            total -= _log_likelihood(logits[wanted], targets[wanted])
            counted += len(wanted)
            advance(sum(map(len, chunks)))
    return math.exp(total / counted)


def _log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum of log p(target); logits float32 [n, vocab], targets int [n]."""
    peak = logits.max(axis=1)
    norm = np.log(np.exp(logits - peak[:, None]).sum(axis=1, dtype=np.float64)) + peak
    return float((logits[np.arange(len(targets)), targets] - norm).sum())
