"""A compiled language model and the KV memory it works on: all that the slot engine asks of a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from tandem.sampling import Choice

GRAPH = "model"  # name of its files, but for the suffix
MAX_STAGES = 9


def graph_files(directory: Path, suffix: str) -> list[str]:
    """Names of an engine's graphs: of the only one, or of the stages of a pipeline in their order."""
    return sorted(path.name for path in directory.glob(f"{GRAPH}.[0-9].{suffix}")) or [f"{GRAPH}.{suffix}"]


class Session(Protocol):
    """Runs graphs of the contract in `build_engines.language_contract`, which names and explains the inputs."""

    slots: int
    positions: int  # of each slot
    wants_few_shapes: bool  # runs of few tokens are to be filled up, so that the same shapes come again

    @property
    def chooses(self) -> bool:
        """Whether it can choose tokens where its logits are."""
        ...

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], first: int, choices: Sequence[Choice] | None = None
    ) -> Mapping[str, npt.NDArray[Any]]:
        """One run over the slots `first` .. `first` + B - 1, which writes K and V of the new tokens into them.

        Args:
            feeds: every input of the contract but the caches, C-contiguous. Not every session wants `visible`, and not
                every stage of a pipeline `tokens`, `received` or `wanted`.
            first: the slot of the first row.
            choices: what the first rows of logits are for, if it `chooses` and is to.

        Returns:
            The outputs of the contract but the caches: `logits` and `features`, or of a stage before the last `passed`;
            views that are valid until the next run. With `choices`, in place of `logits` the `tokens` and `log_probs`
            of `tandem.sampling.choose`.
        """
        ...

    def copy(self, source: int, target: int, positions: int) -> None:
        """Copy K and V of the first positions from one slot to another, in all layers."""
        ...
