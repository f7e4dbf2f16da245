"""The kernel that chooses a token for each row of logits: `tandem.sampling`, steps 5 to 8, one program a row.

The cuts of top-k and top-p are found by bisection over the integer keys of the logits, whose order is theirs: some
30 sums over the row each, which stay in the device's cache. Sums are of integers, so their order does not matter.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tandem import sampling_kernels
from tandem.device.noise import gumbel, log, mass, noise_key, word

_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_INFINITY = tl.constexpr(sampling_kernels.INFINITY_KEY)
_MASS_UNIT = tl.constexpr(2.0**-sampling_kernels.MASS_BITS)
_NO_TOKEN = tl.constexpr(-1)


@triton.jit
def key_of(bits):
    """int32 in the order of the float32 that has these bits; -0 and 0 are one."""
    sign = bits >> 31
    return ((bits & _MAGNITUDE) ^ sign) - sign


@triton.jit
def value_of(key):
    """The logit of a key, float64."""
    magnitude = tl.abs(key).to(tl.float32, bitcast=True).to(tl.float64)
    return tl.where(key < 0, -magnitude, magnitude)


@triton.jit
def _extremes(row, keys, vocab, BLOCK: tl.constexpr):
    """Write the key of every token; return the largest and the smallest, and the lowest token with the largest."""
    top = tl.full((), -_MAGNITUDE, tl.int32)
    low = tl.full((), _MAGNITUDE, tl.int32)
    first = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < vocab
        key = key_of(tl.load(row + tokens, mask=inside, other=0))
        tl.store(keys + tokens, key, mask=inside)
        block_top = tl.max(tl.where(inside, key, -_MAGNITUDE), axis=0)
        block_first = tl.min(tl.where(inside & (key == block_top), tokens, vocab), axis=0)
        first = tl.where(block_top > top, block_first, first)
        top = tl.maximum(top, block_top)
        low = tl.minimum(low, tl.min(tl.where(inside, key, _MAGNITUDE), axis=0))
    return top, low, first


@triton.jit
def _fill_masses(keys, masses, vocab, top_value, scale, cut_key, cut_id, BLOCK: tl.constexpr):
    """Write the mass of every token, 0 behind the cut; return their sum, int64."""
    total = tl.full((), 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < vocab
        key = tl.load(keys + tokens, mask=inside, other=0)
        kept = inside & ((key > cut_key) | ((key == cut_key) & (tokens <= cut_id)))
        z = (value_of(key) - top_value) * scale
        one = tl.where(kept, mass(tl.where(kept, z, 0.0)), 0)
        tl.store(masses + tokens, one, mask=inside)
        total += tl.sum(one, axis=0)
    return total


@triton.jit
def _nth_with(keys, vocab, key, number, BLOCK: tl.constexpr):
    """The token that is `number`-th, from 1, among those with this key."""
    seen = tl.full((), 0, tl.int64)
    found = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        equal = tl.load(keys + tokens, mask=tokens < vocab, other=-_MAGNITUDE) == key
        place = tl.cumsum(equal.to(tl.int32), axis=0).to(tl.int64) + seen
        found = tl.maximum(found, tl.max(tl.where(equal & (place == number), tokens, 0), axis=0))
        seen += tl.sum(equal.to(tl.int64), axis=0)
    return found


@triton.jit
def _cut(keys, masses, vocab, low, top, target, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Key and id of the token at which a sum, by descending key, then ascending id, first reaches `target`.

    The sum is that of the masses, or with COUNT of ones. Tokens of one key have one mass, or 0 where they were cut,
    which are the last of them.
    """
    least = low.to(tl.int64)
    most = top.to(tl.int64) + 1
    # The sum from `least` on reaches the target, that from `most` on does not.
    above = tl.full((), 0, tl.int64)
    each = tl.full((), 1, tl.int64)
    while most - least > 1:
        middle = (least + most) >> 1
        total = tl.full((), 0, tl.int64)
        for start in range(0, vocab, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            taken = tl.load(keys + tokens, mask=tokens < vocab, other=-_MAGNITUDE) >= middle
            if COUNT:
                total += tl.sum(taken.to(tl.int64), axis=0)
            else:
                total += tl.sum(tl.load(masses + tokens, mask=taken, other=0), axis=0)
        reached = total >= target
        least = tl.where(reached, middle, least)
        most = tl.where(reached, most, middle)
        above = tl.where(reached, above, total)
    key = least.to(tl.int32)
    if not COUNT:
        each = tl.full((), 0, tl.int64)
        for start in range(0, vocab, BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            equal = tl.load(keys + tokens, mask=tokens < vocab, other=-_MAGNITUDE) == key
            each = tl.maximum(each, tl.max(tl.load(masses + tokens, mask=equal, other=0), axis=0))
    number = (target - above + each - 1) // each
    return key, _nth_with(keys, vocab, key, number, BLOCK)


@triton.jit
def _largest_score(keys, vocab, top_value, scale, min_z, cut_key, cut_id, noise_of_row, BLOCK: tl.constexpr):
    """The token with the largest z + noise among those that the cuts leave, the lowest id among equals."""
    best = tl.full((), float("-inf"), tl.float64)
    chosen = tl.full((), 0, tl.int32)
    for start in range(0, vocab, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        inside = tokens < vocab
        key = tl.load(keys + tokens, mask=inside, other=0)
        z = (value_of(key) - top_value) * scale
        kept = inside & ((key > cut_key) | ((key == cut_key) & (tokens <= cut_id))) & (z >= min_z)
        scores = tl.where(kept, z + gumbel(word(noise_of_row, tokens)), float("-inf"))
        block_best = tl.max(scores, axis=0)
        block_chosen = tl.min(tl.where(kept & (scores == block_best), tokens, vocab), axis=0)
        chosen = tl.where(block_best > best, block_chosen, chosen)
        best = tl.maximum(best, block_best)
    return chosen


@triton.jit
def choose_kernel(
    logits,  # the bits of float32 logits, int32 [n, stride], `vocab` of a row used
    reals,  # float64 [n, 3]: 1 / temperature (0: greedy), top_p, log(min_p)
    integers,  # int64 [n, 3]: top_k, position, 1 if the log-probability is wanted
    seeds,  # the bits of uint64 seeds, int64 [n]
    keys,  # int32 [n, vocab], overwritten
    masses,  # int64 [n, vocab], overwritten
    tokens,  # int32 [n], written; -1 where a row holds NaN or +inf, or nothing but -inf
    log_probs,  # float32 [n], written
    vocab,
    stride,
    BLOCK: tl.constexpr,
):
    """A token for each row. The grid is (n,)."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * stride
    keys += number * vocab
    masses += number * vocab
    scale = tl.load(reals + number * 3)
    top_p = tl.load(reals + number * 3 + 1)
    min_z = tl.load(reals + number * 3 + 2)
    top_k = tl.load(integers + number * 3)
    position = tl.load(integers + number * 3 + 1).to(tl.uint64, bitcast=True)
    wants_log_prob = tl.load(integers + number * 3 + 2)
    seed = tl.load(seeds + number).to(tl.uint64, bitcast=True)

    top, low, token = _extremes(row, keys, vocab, BLOCK)
    tl.debug_barrier()  # other threads of this program read what these wrote
    top_value = value_of(top)
    valid = (top < _INFINITY) & (low >= -_INFINITY) & (top != -_INFINITY)
    everything = tl.full((), -_MAGNITUDE, tl.int32)
    if valid & (scale > 0.0) & (top_k != 1):
        cut_key = everything
        cut_id = tl.full((), 0, tl.int32)
        if (top_k > 0) & (top_k < vocab):
            cut_key, cut_id = _cut(keys, masses, vocab, low, top, top_k, True, BLOCK)
        if top_p < 1.0:
            total = _fill_masses(keys, masses, vocab, top_value, scale, cut_key, cut_id, BLOCK)
            tl.debug_barrier()
            share = top_p * total.to(tl.float64)
            target = share.to(tl.int64)
            target += (target.to(tl.float64) < share).to(tl.int64)  # rounded up
            target = tl.maximum(tl.minimum(target, total), 1)
            cut_key, cut_id = _cut(keys, masses, vocab, low, top, target, False, BLOCK)
        noise_of_row = noise_key(seed, position)
        token = _largest_score(keys, vocab, top_value, scale, min_z, cut_key, cut_id, noise_of_row, BLOCK)
    tl.store(tokens + number, tl.where(valid, token, _NO_TOKEN))

    log_prob = tl.full((), 0.0, tl.float32)
    if valid & (wants_log_prob != 0):
        total = _fill_masses(keys, masses, vocab, top_value, 1.0, everything, 0, BLOCK)
        logit = tl.load(row + token).to(tl.float32, bitcast=True).to(tl.float64)
        log_prob = (logit - top_value - log(total.to(tl.float64) * _MASS_UNIT)).to(tl.float32)
    tl.store(log_probs + number, log_prob)
