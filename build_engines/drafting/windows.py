"""Batches for training: windows of consecutive tokens of answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from build_engines.drafting.shards import Answers


@dataclass(frozen=True, slots=True)
class Windows:
    """A batch: windows of `length + steps` tokens."""

    tokens: torch.Tensor  # int64 [windows, length + steps]
    features: torch.Tensor  # float32 [windows, length + steps, hidden]
    valid: list[torch.Tensor]  # per step, bool [windows, length]: the answer goes on that far


class Sampler:
    """Draws windows; batch number n is a function of the answers, the seed and n."""

    def __init__(self, answers: Answers, seed: int, *, count: int, length: int, steps: int) -> None:
        if len(answers.tokens) < length + steps:
            raise ValueError(f"{len(answers.tokens)} tokens are too few for a window of {length + steps}")
        self._answers = answers
        self._owner = np.repeat(np.arange(len(answers)), np.diff(answers.starts))
        self._seed, self._count, self._length, self._steps = seed, count, length, steps

    def batch(self, number: int) -> Windows:
        """Windows at random places."""
        source = np.random.default_rng([self._seed, number])
        return self._cut(source.integers(0, self._last + 1, self._count))

    def evenly(self) -> Windows:
        """Windows at even distances, for measuring."""
        return self._cut(np.linspace(0, self._last, self._count).astype(int))

    @property
    def _last(self) -> int:
        return len(self._answers.tokens) - self._length - self._steps

    def _cut(self, starts: npt.NDArray[np.int_]) -> Windows:
        index = starts[:, None] + np.arange(self._length + self._steps)
        owner = self._owner[index]
        first = owner[:, : self._length]
        valid = [torch.from_numpy(owner[:, step : step + self._length] == first) for step in range(1, self._steps + 1)]
        return Windows(
            torch.from_numpy(self._answers.tokens[index].astype(np.int64)),
            torch.from_numpy(self._answers.features[index].astype(np.float32)),
            valid,
        )
