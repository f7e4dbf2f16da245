"""The noise of seeded sampling: known answers, distribution, independence."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tandem import noise

WRAP = 2**64


def mix_by_hand(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WRAP
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WRAP
    return z ^ (z >> 31)


def word_by_hand(seed: int, position: int, token: int) -> int:
    gamma = 0x9E3779B97F4A7C15
    key = mix_by_hand((mix_by_hand((seed + gamma) % WRAP) + (position + 1) * gamma) % WRAP)
    return mix_by_hand((key + (token + 1) * gamma) % WRAP)


def test_mix_gives_the_published_outputs_of_splitmix64() -> None:
    # The first outputs of the reference implementation (Vigna, splitmix64.c) with state 1234567.
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(noise.GAMMA)
    assert noise.mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


KNOWN = [
    # seed, position, token, word, gumbel as bits
    (0, 0, 0, 2558736989570252433, "-0x1.5c8c496496466p-1"),
    (0, 0, 1, 17913671590881668180, "0x1.c3c20f5c9dd59p+1"),
    (1, 0, 0, 12793040940332582595, "0x1.015215352c9a1p+0"),
    (0, 1, 0, 3391245575278488096, "-0x1.0dc7239d76240p-1"),
    (42, 100, 49151, 3082817711790285693, "-0x1.29d2225a67634p-1"),
    (WRAP - 1, 8191, 262143, 9130666635461997586, "0x1.687e39531f6c1p-2"),
]


@pytest.mark.parametrize(("seed", "position", "token", "word", "bits"), KNOWN)
def test_known_answers(seed: int, position: int, token: int, word: int, bits: str) -> None:
    assert noise.words(seed, position, token).tolist() == [word]
    assert noise.gumbel(seed, position, token)[0].hex() == bits


def test_known_digest() -> None:
    """Every bit of 100,000 variates, for other implementations to compare with."""
    digest = hashlib.sha256(noise.gumbel(7, 3, np.arange(100_000)).astype("<f8").tobytes()).hexdigest()
    assert digest == "1f7d66166fbe7d37d93ae51917f3f9ec09d6829a414a689dbaa27709918620dc"


@given(st.integers(0, WRAP - 1), st.integers(0, 2**31), st.integers(0, 2**20))
def test_words_follow_the_definition_in_plain_integers(seed: int, position: int, token: int) -> None:
    assert noise.words(seed, position, token).tolist() == [word_by_hand(seed, position, token)]


def test_log_is_the_logarithm() -> None:
    x = np.concatenate([np.random.default_rng(0).random(200_000), np.geomspace(2.0**-53, 40, 200_000), [1.0]])
    error = np.abs(noise.log(x) - np.log(x))
    assert np.all(error <= 2 * np.spacing(np.abs(np.log(x))))


def test_noise_is_finite_at_both_ends() -> None:
    ends = np.array([0.5, 2**52 - 0.5]) * 2.0**-52
    low, high = -noise.log(-noise.log(ends))
    assert low == pytest.approx(-math.log(53 * math.log(2)))
    assert high == pytest.approx(53 * math.log(2))


def gumbel_p_value(values: np.ndarray) -> float:
    return float(stats.kstest(values.ravel(), stats.gumbel_r.cdf).pvalue)


AXES = {
    "seeds": (np.arange(200_000), 0, 0),
    "positions": (0, np.arange(200_000), 0),
    "tokens": (0, 0, np.arange(200_000)),
    "seeds with high bits": (np.arange(200_000).astype(np.uint64) << np.uint64(40), 17, 1000),
    "diagonal": (np.arange(200_000), np.arange(200_000), np.arange(200_000)),
}


@pytest.mark.parametrize("axis", AXES)
def test_distribution_along_an_axis_is_gumbel(axis: str) -> None:
    assert gumbel_p_value(noise.gumbel(*AXES[axis])) > 1e-3


def test_distribution_test_sees_a_small_shift() -> None:
    assert gumbel_p_value(noise.gumbel(np.arange(200_000), 0, 0) + 0.02) < 1e-6


def uniform(seed: object, position: object, token: object) -> np.ndarray:
    return noise.words(seed, position, token).astype(np.float64) * 2.0**-64


def pair_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Chi-square of two uniform variates on a 16 x 16 grid."""
    counts = np.histogram2d(first.ravel(), second.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
    return float(stats.chisquare(counts.ravel()).pvalue)


NEIGHBOURS = {
    "next seed": (1, 0, 0),
    "next position": (0, 1, 0),
    "next token": (0, 0, 1),
    "next seed, previous position": (1, -1, 0),
    "next position, previous token": (0, 1, -1),
    "seed with one high bit": (2**63, 0, 0),
}


@pytest.mark.parametrize("step", NEIGHBOURS)
def test_neighbours_are_independent(step: str) -> None:
    seeds, positions, tokens = np.meshgrid(np.arange(20_000, dtype=np.uint64), [5, 6, 7], [1, 2], indexing="ij")
    by_seed, by_position, by_token = NEIGHBOURS[step]
    first = uniform(seeds, positions, tokens)
    second = uniform(seeds ^ np.uint64(by_seed), positions + by_position, tokens + by_token)
    assert pair_p_value(first, second) > 1e-3
    assert pair_p_value(first, first) < 1e-9  # the test sees noise that is shared


def test_every_bit_of_the_seed_changes_half_of_the_bits() -> None:
    base = noise.words(np.arange(1000), 3, 4)
    for bit in range(64):
        flipped = noise.words(np.arange(1000, dtype=np.uint64) ^ (np.uint64(1) << np.uint64(bit)), 3, 4)
        changed = np.unpackbits((base ^ flipped).view(np.uint8)).mean()
        assert changed == pytest.approx(0.5, abs=0.01)
