"""Several sessions as one: the layers of a model in stages, each on a device of its own.

For models that one GPU cannot hold. The stages of a step run one after the other, and hidden states go from one to the
next through the host; replicas (`tandem.placement`) are what brings speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from tandem.engines.session import Session
from tandem.sampling import Choice


class PipelineSession:
    """Implements `tandem.engines.session.Session`."""

    def __init__(self, stages: Sequence[Session]) -> None:
        """`stages` in the order of their layers."""
        self._stages = stages
        self.slots = min(stage.slots for stage in stages)
        self.positions = stages[0].positions
        self.wants_few_shapes = stages[0].wants_few_shapes
        self.chooses = stages[-1].chooses

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], first: int, choices: Sequence[Choice] | None = None
    ) -> Mapping[str, npt.NDArray[Any]]:
        """See `Session.run`."""
        for stage in self._stages[:-1]:
            feeds = {**feeds, "received": stage.run(feeds, first)["passed"]}
        return self._stages[-1].run(feeds, first, choices)

    def copy(self, source: int, target: int, positions: int) -> None:
        """See `Session.copy`."""
        for stage in self._stages:
            stage.copy(source, target, positions)
