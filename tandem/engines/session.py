"""A compiled language model and the KV memory it works on: all that the slot engine asks of a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


class Session(Protocol):
    """Runs graphs of the contract in `build_engines.language_contract`, which names and explains the inputs."""

    slots: int
    positions: int  # of each slot
    wants_few_shapes: bool  # runs of few tokens are to be filled up, so that the same shapes come again

    def run(self, feeds: Mapping[str, Integers], first: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """One run over the slots `first` .. `first` + B - 1, which writes K and V of the new tokens into them.

        Args:
            feeds: every input of the contract but the caches, C-contiguous. `visible` is for who wants it.
            first: the slot of the first row.

        Returns:
            logits float32 [W, vocab] and features float32 [W, hidden]; views that are valid until the next run.
        """
        ...

    def copy(self, source: int, target: int, positions: int) -> None:
        """Copy K and V of the first positions from one slot to another, in all layers."""
        ...
