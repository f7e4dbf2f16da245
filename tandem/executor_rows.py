"""What the executor keeps of a sequence, of its row in a call, and of the call itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tandem.kv_cache import BlockTable
from tandem.sampling import SamplingState
from tandem.speculation import DraftState
from tandem.step import MAX_DRAFTS


@dataclass(slots=True)
class HeldSequence:
    """A sequence that the executor holds."""

    drafting: DraftState
    table: BlockTable

    @property
    def sampling(self) -> SamplingState:
        return self.drafting.sampling

    @property
    def prompt_length(self) -> int:
        return self.drafting.opened.prompt_length


@dataclass(slots=True)
class Running:
    """One row of a call on its way through the passes, and what was chosen for it so far."""

    held: HeldSequence
    tokens: Sequence[int]  # committed, not in the cache yet
    budget: int  # tokens that may still be chosen
    chosen: list[int] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    drafted: int = 0
    found: int = 0  # tokens that were in the prefix cache

    @property
    def is_decoding(self) -> bool:
        return len(self.tokens) == 1 and self.budget > 0 and self.held.table.length >= self.held.prompt_length


@dataclass(slots=True)
class Call:
    """What one call adds up over its passes."""

    positions: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((MAX_DRAFTS, 2), np.int32))
    pass_rows: list[int] = field(default_factory=list)
    propose_s: float = 0.0
    forward_s: float = 0.0
    sampling_s: float = 0.0
