"""The compiled part of the sampler. `tandem.sampling` says what is computed; here is how, fast and exact.

Logits are compared as integer keys: `_key(x)` has the order of the float32 x, with -0 equal to 0. Few tokens
of a row can still win once a good one is known: a maximum per block of 64 tokens lets whole blocks be passed
over, because what the noise can add to a logit is bounded by its hash word, before any logarithm is taken.

No `fastmath`: the results must be those of `tandem.noise`, bit for bit. Functions on blocks
are called with the constant BLOCK where the block is whole: that is what lets the compiler unroll and
vectorize them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tandem.compilation import compiled
from tandem.noise import (
    EXPONENT_OF_ONE,
    GAMMA,
    LN2_HI,
    LN2_LO,
    LOG_CARRY,
    LOG_COEFFICIENTS,
    MANTISSA,
    MIX_1,
    MIX_2,
)

BLOCK = 64
INFINITY_KEY = 0x7F800000
MASS_BITS = 44  # the most likely token has the mass 2**44; the sum over 2**19 tokens fits into 63 bits
MASS_END = -30.5  # exp(-30.5) * 2**44 < 1
MIN_NOISE = -3.75  # the noise is never below
NOISE_STEPS = 4  # steps per unit in NOISE_BOUNDS


def _noise_bounds() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Entry i: a bound such that a hash word below it gives less noise than MIN_NOISE + i / NOISE_STEPS."""
    bounds = []
    for i in range(round((37.0 - MIN_NOISE) * NOISE_STEPS)):
        at_least = MIN_NOISE + i / NOISE_STEPS - 1e-3  # far more than the rounding errors of the noise
        distance = -math.expm1(-math.exp(-at_least))  # of u from 1
        bounds.append(max(0, 2**52 - math.ceil(distance * 2**52) - 2) << 12)
    return np.array(bounds, np.uint64)


NOISE_BOUNDS = _noise_bounds()

U0, U1, U12, U27, U30, U31 = (np.uint64(n) for n in (0, 1, 12, 27, 30, 31))
U_GAMMA, U_MIX_1, U_MIX_2 = np.uint64(GAMMA), np.uint64(MIX_1), np.uint64(MIX_2)
I_MANTISSA, I_CARRY, I_ONE, I_CARRIED = (np.int64(n) for n in (MANTISSA, LOG_CARRY, EXPONENT_OF_ONE, 1 << 52))
L1, L2, L3, L4, L5, L6, L7 = LOG_COEFFICIENTS
E2, E3, E4, E5, E6, E7, E8, E9, E10, E11 = (1.0 / math.factorial(n) for n in range(2, 12))
MAGNITUDE = np.int32(0x7FFFFFFF)


@compiled
def _mix(z: Any) -> Any:
    z = (z ^ (z >> U30)) * U_MIX_1
    z = (z ^ (z >> U27)) * U_MIX_2
    return z ^ (z >> U31)


@compiled
def _noise_key(seed: Any, position: Any) -> Any:
    """Step 2 of `tandem.noise`."""
    return _mix(_mix(seed + U_GAMMA) + (np.uint64(position) + U1) * U_GAMMA)


@compiled
def log(x: Any) -> Any:
    """`tandem.noise.log` of one number."""
    bits = np.float64(x).view(np.int64)
    mantissa = bits & I_MANTISSA
    carry = (mantissa + I_CARRY) & I_CARRIED
    k = np.float64((bits >> 52) - 1023 + (carry >> 52))
    f = np.int64(mantissa | (carry ^ I_ONE)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (L2 + w * (L4 + w * L6))
    t2 = z * (L1 + w * (L3 + w * (L5 + w * L7)))
    half_square = 0.5 * f * f
    return s * (half_square + (t2 + t1)) + k * LN2_LO - half_square + f + k * LN2_HI


@compiled
def noise(word: Any) -> Any:
    """Steps 4 and 5 of `tandem.noise`."""
    return -log(-log((np.float64(word >> U12) + 0.5) * 2.0**-52))


@compiled
def mass(z: Any) -> Any:
    """floor(exp(z) * 2**44), int64, for z <= 0; 0 from MASS_END down.

    exp by basic operations only: z = n ln 2 + r with n = trunc(z * 1/ln 2 - 0.5), and the Taylor polynomial
    of degree 11 of r, by Horner's rule. The error is below 0.2, so a larger z has at least the mass of a
    smaller one, less 1.
    """
    clamped = z if z > MASS_END else MASS_END
    n = np.int32(clamped * 1.44269504088896338700 - 0.5)
    r = (clamped - np.float64(n) * LN2_HI) - np.float64(n) * LN2_LO
    tail = E6 + r * (E7 + r * (E8 + r * (E9 + r * (E10 + r * E11))))
    y = 1.0 + r * (1.0 + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * tail)))))
    power = np.int64((np.int64(n) + (1023 + MASS_BITS)) << 52).view(np.float64)
    return np.int64(y * power if z > MASS_END else 0.0)


@compiled
def _key(bits: Any) -> Any:
    sign = np.int32(bits >> 31)
    return np.int32(np.int32(np.int32(bits & MAGNITUDE) ^ sign) - sign)


@compiled
def _value(key: Any) -> Any:
    """The logit of a key, float64."""
    magnitude = np.float64(np.int32(abs(key)).view(np.float32))
    return -magnitude if key < 0 else magnitude


@compiled
def _logit(bits: Any) -> Any:
    return np.float64(np.int32(bits).view(np.float32))


@compiled
def _size(block: Any, vocab: Any) -> Any:
    return min(BLOCK, vocab - block * BLOCK)


@compiled
def _extremes(bits: Any, start: Any, size: Any) -> Any:
    top, low = np.int32(-MAGNITUDE), MAGNITUDE
    for i in range(size):
        key = _key(bits[np.uint64(start) + np.uint64(i)])  # unsigned: no test for an index from the end
        top = max(top, key)
        low = min(low, key)
    return top, low


@compiled
def _block_keys(bits: Any, keys: Any) -> Any:
    """Fill `keys` with the largest key of every block; return the largest and the smallest of the row."""
    row_top, row_low = np.int32(-MAGNITUDE), MAGNITUDE
    for block in range(len(keys)):
        size = _size(block, len(bits))
        if size == BLOCK:
            top, low = _extremes(bits, block * BLOCK, BLOCK)
        else:
            top, low = _extremes(bits, block * BLOCK, size)
        keys[block] = top
        row_top = max(row_top, top)
        row_low = min(row_low, low)
    return row_top, row_low


@compiled
def _first_of(bits: Any, keys: Any, key: Any) -> Any:
    """The lowest token with this key, which is the largest of the row."""
    block = 0
    while keys[block] != key:
        block += 1
    token = block * BLOCK
    while _key(bits[token]) != key:
        token += 1
    return token


@compiled
def _select(candidates: Any, count: Any, target: Any, histogram: Any) -> Any:
    """Where the mass of the candidates, taken by descending key, then ascending id, first reaches `target`.

    A radix selection in the range of their keys. Returns the key and the id of the last candidate taken.

    Args:
        candidates: key int32, id int32, mass int64; the first `count` entries, ids ascending, are overwritten.
        target: 1 .. sum of masses.
        histogram: int64 [256], overwritten.
    """
    keys, ids, masses = candidates
    base, top = np.int64(keys[0]), np.int64(keys[0])
    for i in range(count):
        base = min(base, np.int64(keys[i]))
        top = max(top, np.int64(keys[i]))
    shift = 0
    while (top - base) >> shift > 255:
        shift += 1
    before = np.int64(0)
    while top > base:
        histogram[:] = 0
        for i in range(count):
            histogram[(np.int64(keys[i]) - base) >> shift] += masses[i]
        digit = 255
        while before + histogram[digit] < target:
            before += histogram[digit]
            digit -= 1
        kept = 0
        for i in range(count):
            if (np.int64(keys[i]) - base) >> shift == digit:
                keys[kept], ids[kept], masses[kept] = keys[i], ids[i], masses[i]
                kept += 1
        count = kept
        base += np.int64(digit) << shift
        top = base + (np.int64(1) << shift) - 1
        shift = max(0, shift - 8)
    last = 0
    before += masses[0]
    while before < target:
        last += 1
        before += masses[last]
    return keys[last], ids[last]


@compiled
def _cut_top_k(bits: Any, keys: Any, top_k: Any, candidates: Any, histogram: Any) -> Any:
    """Key and id of the last token that top-k keeps."""
    found_keys, found_ids, ones = candidates
    least = np.int32(-MAGNITUDE)
    if top_k < len(keys):  # the top_k largest block maxima are top_k tokens: the last one kept is not smaller
        for block in range(len(keys)):
            found_keys[block], found_ids[block], ones[block] = keys[block], block, 1
        least, _ = _select(candidates, len(keys), top_k, histogram)
    count = 0
    for block in range(len(keys)):
        if keys[block] >= least:
            for token in range(block * BLOCK, block * BLOCK + _size(block, len(bits))):
                key = _key(bits[token])
                if key >= least:
                    found_keys[count], found_ids[count], ones[count] = key, token, 1
                    count += 1
    return _select(candidates, count, top_k, histogram)


@compiled
def _block_mass(bits: Any, start: Any, size: Any, top: Any, scale: Any, masses: Any) -> Any:
    total = np.int64(0)
    for i in range(size):
        token = np.uint64(start) + np.uint64(i)
        one = mass((_logit(bits[token]) - top) * scale)
        masses[token] = one
        total += one
    return total


@compiled
def _masses(bits: Any, keys: Any, top: Any, scale: Any, cut: Any, masses: Any, block_masses: Any) -> Any:
    """Fill in the mass of every token up to `cut` (0 after it) and the sums of blocks; return the whole sum.

    `masses` is written only in blocks whose sum is not 0.
    """
    cut_key, cut_id = cut
    total = np.int64(0)
    for block in range(len(keys)):
        block_masses[block] = 0
        if keys[block] < cut_key or (_value(keys[block]) - top) * scale <= MASS_END:
            continue
        start, size = block * BLOCK, _size(block, len(bits))
        if size == BLOCK:
            block_mass = _block_mass(bits, start, BLOCK, top, scale, masses)
        else:
            block_mass = _block_mass(bits, start, size, top, scale, masses)
        if cut_key > -MAGNITUDE:
            for token in range(start, start + size):
                key = _key(bits[token])
                if key < cut_key or (key == cut_key and token > cut_id):
                    block_mass -= masses[token]
                    masses[token] = 0
        block_masses[block] = block_mass
        total += block_mass
    return total


@compiled
def _cut_top_p(
    bits: Any, total: Any, top_p: Any, masses: Any, block_masses: Any, candidates: Any, histogram: Any
) -> Any:
    """Key and id of the last token that top-p keeps; `masses` is 0 for tokens that top-k removed."""
    found_keys, found_ids, found_masses = candidates
    target = max(1, min(total, np.int64(math.ceil(top_p * np.float64(total)))))
    # All tokens of this mass or less together are not more than what lies beyond the target. By the rounding
    # of exp a larger key may have a mass that is smaller by 1, hence the margin.
    least = max(1, (total - target) // len(bits) - 4)
    count = 0
    for block in range(len(block_masses)):
        if block_masses[block] >= least:
            for token in range(block * BLOCK, block * BLOCK + _size(block, len(bits))):
                if masses[token] >= least:
                    found_keys[count], found_ids[count] = _key(bits[token]), token
                    found_masses[count] = masses[token]
                    count += 1
    return _select(candidates, count, target, histogram)


@compiled
def _top_word(state: Any) -> Any:
    """The largest word of a block, as if it were whole: at the end of the vocabulary it may be too large."""
    top = U0
    for _ in range(BLOCK):
        state += U_GAMMA
        top = max(top, _mix(state))
    return top


@compiled
def _choose_with_noise(
    bits: Any, keys: Any, top: Any, scale: Any, min_z: Any, cut: Any, noise_key: Any, first: Any
) -> Any:
    """The token with the largest z + noise; `first` is the token with the largest logit."""
    cut_key, cut_id = cut
    chosen = first
    best = noise(_mix(noise_key + (np.uint64(first) + U1) * U_GAMMA))
    for block in range(len(keys)):
        block_z = (_value(keys[block]) - top) * scale
        gap = best - block_z  # what the noise must add
        if keys[block] < cut_key or block_z < min_z or gap > 36.8:
            continue
        bound = NOISE_BOUNDS[int((gap - MIN_NOISE) * NOISE_STEPS)]
        start = block * BLOCK
        state = noise_key + np.uint64(start) * U_GAMMA
        if _top_word(state) < bound:
            continue
        for token in range(start, start + _size(block, len(bits))):
            state += U_GAMMA
            word = _mix(state)
            key = _key(bits[token])
            if word < bound or key < cut_key or (key == cut_key and token > cut_id):
                continue
            z = (_logit(bits[token]) - top) * scale
            if z >= min_z:
                score = z + noise(word)
                if score > best or (score == best and token < chosen):
                    best, chosen = score, token
    return chosen


@compiled
def choose_rows(
    logits: Any, work: Any, slots: Any, reals: Any, integers: Any, seeds: Any, scratch: Any, results: Any
) -> None:
    """Choose a token per row; -1 where a row holds NaN or +inf, or nothing but -inf.

    Args:
        logits, work: the bits of float32 logits, int32 [n, vocab] and [m, vocab].
        slots: int32 [n], the row of `work` to read instead of the row of `logits`, or -1.
        reals: float64 [n, 3], columns 1 / temperature (0: greedy), top_p, log(min_p).
        integers: int64 [n, 3], columns top_k, position, 1 if the log-probability is wanted.
        seeds: uint64 [n].
        scratch: see `tandem.sampling`.
        results: tokens int32 [n] and log-probabilities float32 [n], written.
    """
    keys, masses, block_masses, candidates, histogram = scratch
    tokens, log_probs = results
    everything = (np.int32(-MAGNITUDE), np.int32(0))
    for row in range(len(slots)):
        bits = work[slots[row]] if slots[row] >= 0 else logits[row]
        scale, top_p, min_z = reals[row]
        top_k, position, wants_log_prob = integers[row]
        tokens[row], log_probs[row] = -1, 0.0
        top_key, low_key = _block_keys(bits, keys)
        if top_key >= INFINITY_KEY or low_key < -INFINITY_KEY or top_key == -INFINITY_KEY:
            continue
        top = _value(top_key)
        token = _first_of(bits, keys, top_key)
        if scale > 0.0 and top_k != 1:
            cut = everything
            if 0 < top_k < len(bits):
                cut = _cut_top_k(bits, keys, top_k, candidates, histogram)
            if top_p < 1.0:
                total = _masses(bits, keys, top, scale, cut, masses, block_masses)
                cut = _cut_top_p(bits, total, top_p, masses, block_masses, candidates, histogram)
            noise_key = _noise_key(seeds[row], position)
            token = _choose_with_noise(bits, keys, top, scale, min_z, cut, noise_key, token)
        tokens[row] = token
        if wants_log_prob:
            total = _masses(bits, keys, top, 1.0, everything, masses, block_masses)
            log_probs[row] = _logit(bits[token]) - top - log(np.float64(total) * 2.0**-MASS_BITS)
