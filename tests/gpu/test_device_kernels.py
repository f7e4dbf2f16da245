"""The sampling and acceptance kernels on the GPU: the same tokens as the CPU sampler, and how long they take."""

from __future__ import annotations

import statistics

import device_kernels
import numpy as np
import pytest
from sampling_cases import Choice, compare, draw_batch, draw_row, plain_choice

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def sampler(cuda):
    """The kernels, compiled; only now, as importing them decides how they run."""
    device_kernels.require(interpreted=False)
    from tandem.device import sampler

    return sampler


@pytest.mark.parametrize("vocab", [1, 2, 64, 65, 1000, 5000, 49152, 151936])
def test_choices_are_those_of_the_cpu_sampler(sampler, cuda, vocab):
    for batch in range(10):
        rng = np.random.default_rng([vocab, batch])
        compare(sampler, *draw_batch(rng, vocab, 64), device=cuda)


def test_a_wrong_position_is_noticed(sampler, cuda):
    """The control of the comparison."""
    logits = np.stack([draw_row(np.random.default_rng(1), 1000, "normal") for _ in range(32)])
    right = [plain_choice(9, temperature=0.9, seed=row) for row in range(32)]
    chosen = compare(sampler, logits, right, device=cuda)
    wrong = [Choice(state, position - 1) for state, position in right]
    assert (compare(sampler, logits, wrong, device=cuda) != chosen).any()


def test_acceptance(sampler, cuda):
    import torch

    chosen = torch.tensor([5, 6, 7, 8, 1, 2, -1, 4, 9], dtype=torch.int32, device=cuda)
    accepted, lengths = sampler.accept(chosen, [[5, 6, 0], [1, 3, 4], []], [[6], [], []])
    assert accepted.tolist() == [2, 1, 0]
    assert lengths.tolist() == [2, 2, 1]


def test_speed_table(sampler, cuda, capsys):
    """Milliseconds for the choice alone; printed, not judged."""
    import torch

    kinds = {
        "greedy": {},
        "sampled": {"temperature": 0.8},
        "top-k, top-p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    }
    lines = [f"{torch.cuda.get_device_name()}: choice of tokens, ms, median of 50", "rows  " + "  ".join(kinds)]
    for rows in (1, 8, 32, 128):
        logits = torch.randn(rows, 49152, device=cuda) * 3
        medians = []
        for params in kinds.values():
            choices = [plain_choice(9, seed=row, **params) for row in range(rows)]
            times = []
            for _ in range(55):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                sampler.choose(logits, choices)
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
            medians.append(f"{statistics.median(times[5:]):.3f}")
        lines.append(f"{rows:4d}  " + "  ".join(medians))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
