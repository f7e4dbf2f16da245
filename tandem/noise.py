"""The noise of seeded sampling: a Gumbel variate for every (seed, position, token), computed without a state.

This file is the definition. `sampling_kernels` computes the same bits compiled, and a kernel for another
device must do so too, so every step is an operation whose result IEEE 754 or integer arithmetic fixes: no
library logarithm, no fused multiply-add (a compiler must not contract `a * b + c`), no reassociation.

All integers are unsigned, 64 bits, and wrap.

1. `mix(z)` is the finalizer of SplitMix64 (Stafford's variant 13; Steele, Lea and Flood, "Fast splittable
   pseudorandom number generators", OOPSLA 2014): `z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9`, then
   `z = (z ^ z >> 27) * 0x94D049BB133111EB`, then `z ^ z >> 31`.
2. `key = mix(mix(seed + GAMMA) + (position + 1) * GAMMA)`, GAMMA = 0x9E3779B97F4A7C15: output number
   `position` of the SplitMix64 generator whose state is a hash of the seed. `position` is the absolute index
   in the sequence (prompt included) of the token that is being chosen.
3. `word = mix(key + (token + 1) * GAMMA)`: output number `token` of the generator with state `key`.
4. `u = (float64(word >> 12) + 0.5) * 2**-52`: exact, 2**-53 <= u <= 1 - 2**-53.
5. `gumbel = -log(-log(u))` in float64, with `log` below.

`log(x)` for positive normal x is that of FreeBSD's msun (e_log.c, after Sun's fdlibm), its two
branches replaced by the one formula in `log` here (error below 2 ulp). The order of operations is as written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
LN2_HI = 6.93147180369123816490e-01  # 33 bits of ln 2, so that its multiples by an exponent are exact
LN2_LO = 1.90821492927058770002e-10
LOG_COEFFICIENTS = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
# Added to the bits of a float64, this carries into the exponent exactly when the mantissa is sqrt(2) or more.
LOG_CARRY = 0x00095F6400000000
MANTISSA = 0x000FFFFFFFFFFFFF
EXPONENT_OF_ONE = 0x3FF0000000000000

Words = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def mix(z: Words) -> Words:
    """Step 1, elementwise on uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def words(seed: npt.ArrayLike, position: npt.ArrayLike, tokens: npt.ArrayLike) -> Words:
    """Steps 1 to 3.

    Args:
        seed: 0 .. 2**64 - 1. The three arguments broadcast against each other.
        position: non-negative.
        tokens: token ids, non-negative.
    """
    seeds, positions, ids = (np.array(value, np.uint64, ndmin=1) for value in (seed, position, tokens))
    gamma, one = np.uint64(GAMMA), np.uint64(1)
    keys = mix(mix(seeds + gamma) + (positions + one) * gamma)
    return mix(keys + (ids + one) * gamma)


def log(x: Floats) -> Floats:
    """The logarithm of step 5, elementwise on positive normal float64."""
    bits = x.view(np.int64)
    mantissa = bits & MANTISSA
    carry = (mantissa + LOG_CARRY) & (1 << 52)  # 1 << 52 if the mantissa goes to [sqrt(1/2), 1), else 0
    k = ((bits >> 52) - 1023 + (carry >> 52)).astype(np.float64)
    f = (mantissa | (carry ^ EXPONENT_OF_ONE)).view(np.float64) - 1.0
    c1, c2, c3, c4, c5, c6, c7 = LOG_COEFFICIENTS
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (c2 + w * (c4 + w * c6))
    t2 = z * (c1 + w * (c3 + w * (c5 + w * c7)))
    half_square = 0.5 * f * f
    result: Floats = s * (half_square + (t2 + t1)) + k * LN2_LO - half_square + f + k * LN2_HI
    return result


def gumbel(seed: npt.ArrayLike, position: npt.ArrayLike, tokens: npt.ArrayLike) -> Floats:
    """Steps 1 to 5: standard Gumbel variates, -3.61 .. 36.74; arguments as for `words`."""
    uniform = ((words(seed, position, tokens) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -log(-log(uniform))
