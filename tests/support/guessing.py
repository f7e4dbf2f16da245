"""Model drafters that are as good or as bad as a test wants: the output must not depend on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from table_engine import table_logits

from tandem.noise import gumbel
from tandem.speculation import Drafts, DraftState, GoesOn, ModelDrafter, Speculation
from tandem.step_cost import WIDTHS, StepCost

Guess = Callable[[list[int], DraftState], int]


class GuessingDrafter:
    """Implements `tandem.speculation.ModelDrafter` with one guess after the other."""

    wants_features = False
    is_remote = False

    def __init__(self, guess: Guess) -> None:
        self._guess = guess
        self.proposed = 0
        self.closed: list[int] = []

    def propose(
        self, states: Sequence[DraftState], counts: Sequence[int], goes_on: GoesOn | None = None
    ) -> list[Drafts]:
        drafts = []
        for state, count in zip(states, counts, strict=True):
            history = state.sampling.history.tolist()
            for _ in range(count):
                history.append(self._guess(history, state))
            drafts.append(Drafts(history[len(history) - count :], [0.75] * count))
            self.proposed += count
        return drafts

    def close(self, state: DraftState) -> None:
        self.closed.append(state.opened.sequence)


def best_token(history: list[int], state: DraftState, vocab: int) -> int:
    """What the target of `TableEngine` chooses, without penalties."""
    scores = table_logits(history, vocab).astype(float)
    params = state.sampling.params
    if params.temperature:
        scores = scores / params.temperature + gumbel(params.seed, len(history), range(vocab))
    return int(scores.argmax())


def adversaries(vocab: int, end: int) -> dict[str, Guess]:
    """Drafters by name: always right, always wrong, at random, only ends of text, ids outside the vocabulary."""
    rng = random.Random(5)
    return {
        "oracle": lambda history, state: best_token(history, state, vocab),
        "anti-oracle": lambda history, state: (best_token(history, state, vocab) + 1) % vocab,
        "half right": lambda history, state: (best_token(history, state, vocab) + rng.randrange(2)) % vocab,
        "random": lambda history, state: rng.randrange(vocab),
        "ends": lambda history, state: end,
        "outside": lambda history, state: rng.choice([vocab, -1, 10**6]),
    }


def linear(slope: float, change: float = 0.0) -> StepCost:
    """A step of two tokens costs a second; each more costs `slope` more, and another width than before `change`."""
    return StepCost(WIDTHS, [1.0 + slope * (width - 2) for width in WIDTHS], change)


def eager(model: ModelDrafter | None = None) -> Speculation:
    """Speculation on a machine where a wide step costs next to nothing, so that everything is tried."""
    return Speculation(linear(1e-5), model)
