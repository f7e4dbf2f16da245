"""The kernel that applies penalties and masks to logits: `tandem.penalties`, one entry for each token it concerns."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def penalize_kernel(
    logits,  # float32 [n, stride], changed in place
    rows,  # int32 [entries]
    tokens,  # int32 [entries], no token twice in a row
    counts,  # int32 [entries]: how often in the answer; -1: masked
    penalties,  # float32 [n, 3]: repetition, presence, frequency
    entries,
    stride,
    BLOCK: tl.constexpr,
):
    """Every token of `tokens` was seen and gets the repetition penalty, or is masked. The grid covers the entries."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < entries
    row = tl.load(rows + at, mask=inside, other=0).to(tl.int64)
    place = logits + row * stride + tl.load(tokens + at, mask=inside, other=0)
    count = tl.load(counts + at, mask=inside, other=0)
    repetition = tl.load(penalties + row * 3, mask=inside, other=1.0)
    presence = tl.load(penalties + row * 3 + 1, mask=inside, other=0.0)
    frequency = tl.load(penalties + row * 3 + 2, mask=inside, other=0.0)
    logit = tl.load(place, mask=inside, other=0.0)
    logit = tl.where(logit < 0, logit * repetition, tl.div_rn(logit, repetition))
    lowered = (logit - frequency * count.to(tl.float32)) - presence
    logit = tl.where(count > 0, lowered, logit)
    tl.store(place, tl.where(count < 0, float("-inf"), logit), mask=inside)
