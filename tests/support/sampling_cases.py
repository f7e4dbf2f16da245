"""Random rows of logits with sampling parameters, and the comparison of a kernel's choices with the CPU sampler's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tandem import sampling
from tandem.sampling import Choice, SamplingParams, SamplingState

Logits = np.ndarray[Any, np.dtype[np.float32]]
STYLES = ("normal", "ties", "flat", "zeros", "peaked", "masked", "wide", "narrow", "broken")


def draw_row(rng: np.random.Generator, vocab: int, style: str) -> Logits:
    """A row of logits with something special about it."""
    row = rng.standard_normal(vocab) * 3
    if style == "ties":
        row = np.round(row)
    elif style == "flat":
        row = np.full(vocab, float(rng.integers(-3, 4)))
    elif style == "zeros":
        row = np.where(rng.random(vocab) < 0.5, -0.0, 0.0)
    elif style == "peaked":
        row[rng.integers(vocab)] = 25
    elif style == "masked":
        row[rng.random(vocab) < 0.7] = -np.inf
    elif style == "wide":
        row = row * 1e30
    elif style == "narrow":
        row = 7 + row * 1e-6
    elif style == "broken":
        row[rng.integers(vocab)] = rng.choice([np.nan, -np.nan, np.inf, -np.inf])
    return row.astype(np.float32)


def draw_params(rng: np.random.Generator, vocab: int, answer: list[int]) -> SamplingParams:
    """Parameters that meet the boundaries of every filter."""

    def one_of(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    bad_words = [tuple(rng.integers(0, vocab, rng.integers(1, 4)).tolist()) for _ in range(rng.integers(0, 3))]
    if answer and rng.random() < 0.5:
        bad_words.append((*answer[-2:], int(rng.integers(vocab))))  # one that does match
    return SamplingParams(
        temperature=one_of(0.0, 1e-30, 0.1, 0.8, 1.0, 7.0),
        top_k=one_of(0, 0, 1, 2, 3, 10, 50, vocab - 1, vocab, vocab + 1),
        top_p=one_of(1.0, 1.0, 0.0, 0.1, 0.5, 0.75, 0.999),
        min_p=one_of(0.0, 0.0, 0.01, 0.3, 1.0),
        seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
        repetition_penalty=one_of(1.0, 1.0, 0.5, 1.3),
        presence_penalty=one_of(0.0, 0.0, -1.0, 0.7),
        frequency_penalty=one_of(0.0, 0.0, -0.3, 0.9),
        min_length=int(rng.integers(0, 8)),
        end_ids=tuple(rng.integers(0, vocab, rng.integers(0, 3)).tolist()),
        bad_words=tuple(bad_words),
        log_probs=bool(rng.integers(2)),
    )


def draw_batch(rng: np.random.Generator, vocab: int, rows: int) -> tuple[Logits, list[Choice]]:
    """Rows of all styles, each with a history and parameters of its own."""
    logits = np.stack([draw_row(rng, vocab, STYLES[rng.integers(len(STYLES))]) for _ in range(rows)])
    choices = []
    for _ in range(rows):
        prompt, answer = (rng.integers(0, vocab, rng.integers(0, 8)).tolist() for _ in range(2))
        state = SamplingState(draw_params(rng, vocab, answer), len(prompt))
        state.append([*prompt, *answer])
        choices.append(Choice(state, int(rng.integers(len(prompt), len(state) + 1))))
    return logits, choices


def plain_choice(position: int = 0, **params: Any) -> Choice:
    """A choice with these parameters at this position, after a prompt of that length."""
    state = SamplingState(SamplingParams(**params), position)
    state.append([0] * position)
    return Choice(state, position)


def compare(
    sampler: Any, logits: Logits, choices: list[Choice], *, block: int = 1024, device: str = "cpu"
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The kernel's tokens; fails unless they, and the bits of the log-probabilities, are the CPU sampler's."""
    expected, expected_log_probs = sampling.choose(logits.copy(), choices)
    given = torch.from_numpy(logits.copy()).to(device)
    tokens, log_probs = (result.cpu().numpy() for result in sampler.choose(given, choices, block=block))
    wrong = np.flatnonzero(tokens != expected)
    detail = [(tokens[row], expected[row], choices[row].state.params) for row in wrong[:3]]
    assert len(wrong) == 0, f"{len(wrong)} of {len(tokens)} rows: {detail}"
    assert np.array_equal(log_probs.view(np.int32), expected_log_probs.view(np.int32))
    return expected
