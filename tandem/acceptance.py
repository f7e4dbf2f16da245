"""How often drafts are accepted: counts that forget, with a prior where there is little evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

SERVER_MEMORY = 2000.0  # trials after which a rate has mostly forgotten
SEQUENCE_MEMORY = 50.0
PRIOR_WEIGHT = 4.0  # trials that the prior counts for
IDLE_DECAY = 0.999  # what is left of the evidence per pass without a draft: so that a drafter is tried again


@dataclass(slots=True)
class Rate:
    """The share of draft tokens that were accepted, among those whose predecessors were."""

    memory: float
    accepted: float = 0.0
    tried: float = 0.0

    def observe(self, accepted: int, tried: int) -> None:
        keep = (1 - 1 / self.memory) ** tried
        self.accepted = self.accepted * keep + accepted
        self.tried = self.tried * keep + tried

    def forget(self) -> None:
        """Nothing was drafted, so what is known gets old."""
        self.accepted *= IDLE_DECAY
        self.tried *= IDLE_DECAY

    def mean(self, prior: float) -> float:
        """The expected share, between 0 and 1, where `prior` is expected before any trial."""
        return (self.accepted + PRIOR_WEIGHT * prior) / (self.tried + PRIOR_WEIGHT)


@dataclass(slots=True)
class ServerRates:
    """Acceptance over all sequences, by drafter and kind of draft."""

    priors: tuple[float, ...]  # what is expected of each kind before anything was seen
    rates: list[Rate] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [Rate(SERVER_MEMORY) for _ in self.priors]

    def mean(self, kind: int) -> float:
        return self.rates[kind].mean(self.priors[kind])
