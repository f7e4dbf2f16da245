"""Kernels for the device, in the interpreter on CPU, against the CPU sampler: the same bits and the same tokens."""

from __future__ import annotations

import os
import subprocess
import sys

import device_kernels
import numpy as np
import pytest
from sampling_cases import compare, draw_batch, draw_row, plain_choice

device_kernels.require(interpreted=True)  # before the kernels are imported

import torch
import triton
import triton.language as tl

from tandem import noise, sampling_kernels
from tandem.device import noise as device_noise
from tandem.device import sampler
from tandem.executor import _up_to_end
from tandem.penalties import apply_penalties
from tandem.sampling import _is_unfinished
from tandem.speculation import agreement

VOCAB = 49152  # of the default model


@triton.jit
def gumbel_kernel(out, seeds, positions, tokens, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    seed = tl.load(seeds + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    position = tl.load(positions + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
    key = device_noise.noise_key(seed, position)
    words = device_noise.word(key, tl.load(tokens + at, mask=inside, other=0))
    tl.store(out + at, device_noise.gumbel(words), mask=inside)


@triton.jit
def mass_kernel(out, values, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, device_noise.mass(tl.load(values + at, mask=inside, other=0.0)), mask=inside)


@pytest.mark.parametrize("where", ["corners", "a row of the vocabulary", "anywhere"])
def test_noise_has_the_same_bits(where):
    rng = np.random.default_rng(1)
    count = 40_000
    seeds = rng.integers(0, 2**64, count, np.uint64)
    positions, tokens = rng.integers(0, 2**31, count), rng.integers(0, 2**19, count)
    if where == "a row of the vocabulary":
        seeds[:], positions[:], tokens = 7, 3, np.arange(count)
    elif where == "corners":
        seeds[:] = np.resize(np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64), count)
        positions[:], tokens[:] = np.resize([0, 1, 8191, 2**31 - 1], count), np.resize([0, 49151, 2**19 - 1], count)
    out = torch.empty(count, dtype=torch.float64)
    arrays = (torch.from_numpy(array.view(np.int64)) for array in (seeds, positions, tokens))
    gumbel_kernel[(1,)](out, *arrays, count, BLOCK=1 << 16)
    expected = noise.gumbel(seeds, positions, tokens)
    assert np.array_equal(out.numpy().view(np.int64), expected.view(np.int64))


def test_masses_are_the_same():
    end = sampling_kernels.MASS_END
    values = np.concatenate([np.linspace(2 * end, 0, 20_000), [0.0, end, np.nextafter(end, 0), -1e300, -np.inf]])
    out = torch.empty(len(values), dtype=torch.int64)
    mass_kernel[(1,)](out, torch.from_numpy(values), len(values), BLOCK=1 << 15)
    assert out.tolist() == [int(sampling_kernels.mass(value)) for value in values]


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 700])
def test_choices_are_those_of_the_cpu_sampler(vocab):
    rng = np.random.default_rng(vocab)
    chosen = compare(sampler, *draw_batch(rng, vocab, 10))
    assert vocab < 63 or len(set(chosen.tolist())) > 2


def test_a_row_that_takes_many_blocks():
    rng = np.random.default_rng(5)
    compare(sampler, *draw_batch(rng, 150, 6), block=64)


def test_the_default_vocabulary():
    rng = np.random.default_rng(6)
    params = [
        {},
        {"temperature": 0.8, "seed": 1, "log_probs": True},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 2},
        {"temperature": 1.3, "top_p": 0.95, "min_p": 0.02, "seed": 3},
    ]
    styles = ("normal", "ties", "narrow", "normal")
    logits = np.stack([draw_row(rng, VOCAB, style) for style in styles])
    compare(sampler, logits, [plain_choice(9, **each) for each in params], block=1 << 16)


@pytest.mark.parametrize("top_p", [0.0, 0.5, np.nextafter(0.5, 0), np.nextafter(0.5, 1), 0.999])
def test_boundaries_of_top_p(top_p):
    """Eight tokens of the same mass: each share is met exactly, and one bit more takes in one token more."""
    choices = [plain_choice(temperature=1.0, top_p=float(top_p), seed=seed) for seed in range(6)]
    chosen = compare(sampler, np.full((6, 8), 2.5, np.float32), choices, block=8)
    assert chosen.max() < max(1, np.ceil(top_p * 8))


@pytest.mark.parametrize("top_k", [2, 3, 7])
def test_ties_at_the_boundary_of_top_k(top_k):
    logits = np.tile(np.array([1, 0, -0.0, 0, 1, -0.0, 0, 0], np.float32), (6, 1))
    kept = [0, 4, 1, 2, 3, 5, 6, 7][:top_k]
    choices = [plain_choice(temperature=50.0, top_k=top_k, seed=seed) for seed in range(6)]
    assert set(compare(sampler, logits, choices, block=4).tolist()) <= set(kept)


def test_broken_rows_do_not_touch_their_neighbours():
    logits = np.zeros((6, 40), np.float32)
    logits[1, 3], logits[2, 5], logits[3] = np.nan, np.inf, -np.inf
    logits[4, 7] = -np.nan
    chosen = compare(sampler, logits, [plain_choice(temperature=1.0, seed=seed) for seed in range(6)], block=64)
    assert (chosen == -1).tolist() == [False, True, True, True, True, False]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="does not fit 2 choices"):
        sampler.choose(torch.zeros(1, 4), [plain_choice(), plain_choice()])
    with pytest.raises(ValueError, match="float64"):
        sampler.choose(torch.zeros(1, 4, dtype=torch.float64), [plain_choice()])
    with pytest.raises(ValueError, match="3 rows do not fit drafts that need 2"):
        sampler.accept(torch.zeros(3, dtype=torch.int32), [[1]], [[]])


def test_no_rows():
    assert sampler.choose(torch.zeros(0, 4), [])[0].tolist() == []
    assert sampler.accept(torch.zeros(0, dtype=torch.int32), [], [])[0].tolist() == []


# ---------------------------------------------------------------- acceptance


def accept_on_cpu(chosen, drafts, end_ids):
    accepted, lengths, at = [], [], 0
    for draft, ends in zip(drafts, end_ids, strict=True):
        run = chosen[at : at + len(draft) + 1]
        accepted.append(agreement(draft, run[:-1]))
        lengths.append(len(_up_to_end(run[: accepted[-1] + 1], ends)))
        at += len(draft) + 1
    return accepted, lengths


def draw_drafts(rng, sequences):
    """Drafts of which about half agree, ends and rows without a choice among them."""
    drafts = [rng.integers(0, 4, rng.integers(0, 9)).tolist() for _ in range(sequences)]
    ends = [rng.integers(0, 12, rng.integers(0, 3)).tolist() for _ in range(sequences)]
    chosen = []
    for draft in drafts:
        run = [token if rng.random() < 0.7 else int(rng.integers(-1, 4)) for token in draft]
        chosen += [*run, int(rng.integers(-1, 4))]
    return chosen, drafts, ends


def compare_acceptance(module, seed):
    chosen, drafts, ends = draw_drafts(np.random.default_rng(seed), 40)
    accepted, lengths = module.accept(torch.tensor(chosen, dtype=torch.int32), drafts, ends)
    assert (accepted.tolist(), lengths.tolist()) == accept_on_cpu(chosen, drafts, ends)
    assert len(set(accepted.tolist())) > 3


def test_acceptance_is_that_of_the_executor():
    for seed in range(2):
        compare_acceptance(sampler, seed)


# ---------------------------------------------------------------- what must be noticed


def seeded_rows(module):
    rng = np.random.default_rng(8)
    logits = np.stack([draw_row(rng, 200, "normal") for _ in range(6)])
    choices = [plain_choice(2 + row, temperature=0.9, seed=5) for row in range(6)]
    compare(module, logits, choices, block=256)


def tied_rows(module):
    greedy = [plain_choice() for _ in range(4)]
    compare(module, np.tile(np.array([0, 1, 1, 0, 1, 0], np.float32), (4, 1)), greedy, block=2)


def tied_top_k(module):
    choices = [plain_choice(temperature=9.0, top_k=3, seed=seed) for seed in range(6)]
    compare(module, np.zeros((6, 32), np.float32), choices, block=32)


def exact_top_p(module):
    choices = [plain_choice(temperature=1.0, top_p=0.5, seed=seed) for seed in range(6)]
    compare(module, np.zeros((6, 4), np.float32), choices, block=4)


def signed_zeros(module):
    compare(module, np.array([[-0.0, 0.0]] * 2, np.float32), [plain_choice(), plain_choice()], block=2)


def min_p_rows(module):
    rng = np.random.default_rng(9)
    logits = np.stack([draw_row(rng, 100, "normal") for _ in range(6)])
    compare(module, logits, [plain_choice(temperature=2.0, min_p=0.2, seed=seed) for seed in range(6)], block=128)


def penalized_rows(module):
    """Penalties and masks alone, bit for bit."""
    logits, choices = draw_batch(np.random.default_rng(10), 12, 60)
    counts, none = np.zeros(12, np.int32), np.empty(0, np.int32)
    expected = logits.copy()
    for row, (state, position) in zip(expected, choices, strict=True):
        masked = state._end_ids if _is_unfinished(state, position) else none
        history = state.history[:position]
        apply_penalties(
            row, history, state.prompt_length, state._penalties, state._bad_words, masked.astype(np.int32), counts
        )
    given = torch.from_numpy(logits.copy())
    module._edit(given, choices, 128)
    assert np.array_equal(given.numpy().view(np.int32), expected.view(np.int32))
    assert not np.array_equal(logits.view(np.int32), expected.view(np.int32))


def test_penalties_have_the_same_bits():
    penalized_rows(sampler)


MUTATIONS = {
    "position off by one": (seeded_rows, "noise.py", "(position + 1)", "(position + 2)"),
    "noise shared by positions": (
        seeded_rows, "choice.py",
        "noise_key(seed, position)",
        "noise_key(seed, position * 0)",
    ),
    "noise shared by tokens": (
        seeded_rows, "choice.py",
        "word(noise_of_row, tokens)",
        "word(noise_of_row, tokens * 0)",
    ),
    "noise in float32": (
        None, "noise.py",
        "((words >> 12).to(tl.float64) + 0.5)",
        "((words >> 12).to(tl.float32).to(tl.float64) + 0.5)",
    ),
    "a fused multiply-add": (
        None, "noise.py",
        "- half_square + f + k * _LN2_HI",
        "- half_square + f * 0 + tl.fma(k, k * 0 + _LN2_HI, f)",
    ),
    "the last of equals": (
        tied_rows, "choice.py",
        "tl.where(block_top > top, block_first",
        "tl.where(block_top >= top, block_first",
    ),
    "top-k takes the last of equals": (
        tied_top_k, "choice.py",
        "(tokens <= cut_id))) & (z",
        "(tokens >= cut_id))) & (z",
    ),
    "top-k takes one less": (
        tied_top_k, "choice.py",
        "above + each - 1) // each",
        "above + each - 2) // each",
    ),
    "top-p takes one more": (
        exact_top_p, "choice.py",
        "(target.to(tl.float64) < share)",
        "(target.to(tl.float64) <= share)",
    ),
    "-0 below 0": (
        signed_zeros, "choice.py",
        "return ((bits & _MAGNITUDE) ^ sign) - sign",
        "return (bits & _MAGNITUDE) ^ sign",
    ),
    "min-p left out": (min_p_rows, "choice.py", " & (z >= min_z)", ""),
    "a count too many": (
        penalized_rows, "penalties.py",
        "frequency * count.to(tl.float32)",
        "frequency * (count + 1).to(tl.float32)",
    ),
    "an inexact division": (
        penalized_rows, "penalties.py",
        "tl.div_rn(logit, repetition)",
        "logit * (1.0 / repetition)",
    ),
    "masks left out": (penalized_rows, "penalties.py", 'tl.where(count < 0, float("-inf"), logit)', "logit"),
}  # fmt: skip


gumbel_of_module = device_noise.gumbel


@triton.jit
def other_gumbel_kernel(out, words, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, gumbel_of_module(tl.load(words + at).to(tl.uint64, bitcast=True)))


def same_noise(module):
    """Bits of the noise of a mutated copy; a choice would show a wrong last bit only once in a long while."""
    global gumbel_of_module
    gumbel_of_module = sys.modules[module.__name__.rpartition(".")[0] + ".noise"].gumbel
    words = torch.from_numpy(noise.words(3, 4, np.arange(4096)).view(np.int64))
    out = torch.empty(4096, dtype=torch.float64)
    other_gumbel_kernel[(1,)](out, words, BLOCK=4096)
    assert np.array_equal(out.numpy(), noise.gumbel(3, 4, np.arange(4096)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(name, tmp_path):
    check, file, old, new = MUTATIONS[name]
    check = check or same_noise
    check(sampler)
    with pytest.raises(AssertionError):
        check(device_kernels.mutant(tmp_path, f"mutant{list(MUTATIONS).index(name)}", file, old, new))


ACCEPTANCES = [
    ("token != draft", "token == draft"),
    ("tl.store(accepted + number, agreed)", "tl.store(accepted + number, agreed + 1)"),
    ("tl.minimum(agreed, end) + 1", "agreed + 1"),
    ("end_ids + number * ENDS + i", "end_ids + i"),
]


@pytest.mark.parametrize("number", range(len(ACCEPTANCES)))
def test_a_mutated_acceptance_is_noticed(number, tmp_path):
    module = device_kernels.mutant(tmp_path, f"acceptance{number}", "acceptance.py", *ACCEPTANCES[number])
    with pytest.raises(AssertionError):
        compare_acceptance(module, 0)


# ---------------------------------------------------------------- the compiler, which needs no GPU


def test_compiled_for_a_gpu_nothing_is_contracted():
    """In PTX, `mul.rn` and `add.rn` must not be fused by what comes after; plain `mul` and `add` may be."""
    env = {name: value for name, value in os.environ.items() if name != device_kernels.INTERPRET}
    command = [sys.executable, str(device_kernels.ROOT / "tests" / "support" / "compiled_kernels.py"), "89"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "choose_kernel sm_89: exact" in done.stdout
    assert "choose_kernel sm_89 with fusion: contracted" in done.stdout  # the control
