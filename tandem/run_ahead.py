"""The pass that runs before the call that will probably ask for it, and how it is undone if none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.executor_rows import Call, Running
from tandem.sequence_cache import SequenceCache
from tandem.step import StepRequest, StepRow


@dataclass(slots=True)
class Ahead:
    """One row of the pass that ran ahead of the next call, and where its sequence stood before."""

    running: Running
    keep: int  # tokens in the cache
    tokens: Sequence[int]
    budget: int
    features: npt.NDArray[np.float32] | None
    went_on: bool = False  # it has its blocks for the pass after

    def is_asked_for(self, row: StepRow) -> bool:
        return (row.keep, row.choices, [*row.tokens]) == (self.keep, self.budget, [*self.tokens])


class RunAhead:
    """What ran ahead and was not asked for yet."""

    def __init__(self, kv_cache: SequenceCache) -> None:
        self._kv_cache = kv_cache
        self.rows: dict[int, Ahead] = {}  # by sequence; of these the caches hold more than was asked for
        self.call = Call()  # what the pass that ran ahead adds to the call that takes it

    def run(self, rows: Sequence[Running], run_pass: Callable[[list[Running], Call], list[Running]]) -> None:
        """One pass over rows that went on after the last call; `run_pass` returns those that go on again."""
        ahead = [
            Ahead(
                Running(row.held, row.tokens, row.budget),
                row.held.table.length,
                row.tokens,
                row.budget,
                row.held.drafting.features,
            )
            for row in rows
        ]
        self.call = Call()
        going_on = {id(row) for row in run_pass([one.running for one in ahead], self.call)}
        for one in ahead:
            one.went_on = id(one.running) in going_on
        self.rows = {one.running.held.drafting.opened.sequence: one for one in ahead}

    def take(self, request: StepRequest) -> dict[int, Ahead]:
        """What `request` asks for of it, by sequence; the rest is rolled back."""
        rows, self.rows = self.rows, {}
        opened = {one.sequence for one in request.opens}
        asked = {row.sequence: row for row in request.rows if row.sequence not in opened}
        taken = {}
        for sequence, one in rows.items():
            if sequence in asked and sequence not in request.closes and one.is_asked_for(asked[sequence]):
                taken[sequence] = one
            else:
                held = one.running.held
                self._kv_cache.truncate(held.table, one.keep)
                held.sampling.truncate(one.keep)
                held.drafting.features = one.features
        return taken
