"""The noise of `tandem.noise` and the masses of `tandem.sampling_kernels`, as device functions: the same bits.

Divisions of float64 are IEEE's on the device. Those of float32 are not unless `div_rn` is asked for.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import math

import triton
import triton.language as tl

from tandem import noise, sampling_kernels

_GAMMA = tl.constexpr(noise.GAMMA)
_MIX_1 = tl.constexpr(noise.MIX_1)
_MIX_2 = tl.constexpr(noise.MIX_2)
_LN2_HI = tl.constexpr(noise.LN2_HI)
_LN2_LO = tl.constexpr(noise.LN2_LO)
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (tl.constexpr(value) for value in noise.LOG_COEFFICIENTS)
_CARRY = tl.constexpr(noise.LOG_CARRY)
_MANTISSA = tl.constexpr(noise.MANTISSA)
_EXPONENT_OF_ONE = tl.constexpr(noise.EXPONENT_OF_ONE)
_CARRIED = tl.constexpr(1 << 52)
_ULP = tl.constexpr(2.0**-52)
_INVERSE_LN2 = tl.constexpr(1.44269504088896338700)
_E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10, _E11 = (tl.constexpr(1.0 / math.factorial(n)) for n in range(2, 12))
_MASS_END = tl.constexpr(sampling_kernels.MASS_END)
_MASS_EXPONENT = tl.constexpr(1023 + sampling_kernels.MASS_BITS)


@triton.jit
def mix(z):
    """Step 1 of `tandem.noise`, on uint64."""
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


@triton.jit
def noise_key(seed, position):
    """Step 2, of uint64."""
    return mix(mix(seed + _GAMMA) + (position + 1) * _GAMMA)


@triton.jit
def word(key, tokens):
    """Step 3; `tokens` of any integer type."""
    return mix(key + (tokens.to(tl.uint64) + 1) * _GAMMA)


@triton.jit
def log(x):
    """The logarithm of step 5, on positive normal float64."""
    bits = x.to(tl.int64, bitcast=True)
    mantissa = bits & _MANTISSA
    carry = (mantissa + _CARRY) & _CARRIED
    k = ((bits >> 52) - 1023 + (carry >> 52)).to(tl.float64)
    f = (mantissa | (carry ^ _EXPONENT_OF_ONE)).to(tl.float64, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (_C2 + w * (_C4 + w * _C6))
    t2 = z * (_C1 + w * (_C3 + w * (_C5 + w * _C7)))
    half_square = 0.5 * f * f
    return s * (half_square + (t2 + t1)) + k * _LN2_LO - half_square + f + k * _LN2_HI


@triton.jit
def gumbel(words):
    """Steps 4 and 5: float64."""
    return -log(-log(((words >> 12).to(tl.float64) + 0.5) * _ULP))


@triton.jit
def mass(z):
    """`sampling_kernels.mass`: floor(exp(z) * 2**44), int64, of float64 z <= 0."""
    clamped = tl.where(z > _MASS_END, z, _MASS_END)
    n = (clamped * _INVERSE_LN2 - 0.5).to(tl.int32)
    r = (clamped - n.to(tl.float64) * _LN2_HI) - n.to(tl.float64) * _LN2_LO
    tail = _E6 + r * (_E7 + r * (_E8 + r * (_E9 + r * (_E10 + r * _E11))))
    y = 1.0 + r * (1.0 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * tail)))))
    power = ((n.to(tl.int64) + _MASS_EXPONENT) << 52).to(tl.float64, bitcast=True)
    return tl.where(z > _MASS_END, y * power, 0.0).to(tl.int64)
