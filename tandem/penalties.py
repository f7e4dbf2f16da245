"""Penalties and masks that depend on the history of a sequence, applied to its logits. See `tandem.sampling`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tandem.compilation import compiled

SEEN = np.int32(1 << 30)  # added to the count of a token that got its repetition penalty


@compiled
def apply_penalties(
    row: Any, history: Any, prompt_length: Any, penalties: Any, words: Any, masked: Any, counts: Any
) -> None:
    """Apply penalties and masks to a row of logits in place, in float32. Ids outside the row have no effect.

    Args:
        row: float32 [vocab].
        history: int32, the tokens before the position that is chosen.
        prompt_length: how many of them are prompt.
        penalties: float32 [3]: repetition, presence, frequency.
        words: int32, all bad words end to end; int32, where each starts, and the end of the last.
        masked: int32, tokens that may not be chosen now.
        counts: int32 [vocab], zeros, and zeros again afterwards.
    """
    repetition, presence, frequency = penalties
    if repetition != 1.0 or presence != 0.0 or frequency != 0.0:
        for i in range(len(history)):
            token = history[i]
            if 0 <= token < len(row):
                if counts[token] == 0:
                    counts[token] = SEEN
                    logit = row[token]
                    row[token] = logit * repetition if logit < 0 else logit / repetition
                if i >= prompt_length:
                    counts[token] += 1
        for i in range(len(history)):
            token = history[i]
            if 0 <= token < len(row):
                count = counts[token] & ~SEEN
                if count > 0:
                    row[token] = np.float32(row[token] - np.float32(frequency * np.float32(count))) - presence
                counts[token] = 0
    ids, starts = words
    for word in range(len(starts) - 1):
        rest = starts[word + 1] - starts[word] - 1
        if rest <= len(history):
            matches = True
            for i in range(rest):
                matches = matches and history[len(history) - rest + i] == ids[starts[word] + i]
            last = ids[starts[word] + rest]
            if matches and 0 <= last < len(row):
                row[last] = -np.inf
    for token in masked:
        if 0 <= token < len(row):
            row[token] = -np.inf
