"""The kernel that says how much of each draft is kept: up to where it is no longer what was chosen."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def accept_kernel(
    chosen,  # int32 [rows]: the tokens of `choose_kernel`, each sequence's rows together
    starts,  # int32 [n + 1]: where each sequence's rows begin, and the end of the last; one row more than drafts
    drafts,  # int32 [rows - n]: all drafts end to end
    end_ids,  # int32 [n, ENDS]: tokens behind which nothing follows, filled up with -2
    accepted,  # int32 [n], written: drafts that are the choice, before the first that is not
    lengths,  # int32 [n], written: chosen tokens that are kept; one more than accepted, or up to an end
    ENDS: tl.constexpr,
    BLOCK: tl.constexpr,  # as many as the rows of any sequence
):
    """The grid is (n,)."""
    number = tl.program_id(0)
    start = tl.load(starts + number)
    count = tl.load(starts + number + 1) - start
    places = tl.arange(0, BLOCK)
    # What is filled in agrees with nothing, nor does -1, the token of a row without a choice.
    token = tl.load(chosen + start + places, mask=places < count, other=-3)
    draft = tl.load(drafts + start - number + places, mask=places < count - 1, other=-4)
    agreed = tl.min(tl.where(token != draft, places, BLOCK), axis=0)
    ends = places < 0
    for i in tl.static_range(ENDS):
        ends = ends | (token == tl.load(end_ids + number * ENDS + i))
    end = tl.min(tl.where(ends, places, BLOCK), axis=0)
    tl.store(accepted + number, agreed)
    tl.store(lengths + number, tl.minimum(agreed, end) + 1)
