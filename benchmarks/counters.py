"""What the server counted during one run of a benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any, Self

from client.metrics import Reading, read_metrics
from tandem.step import MAX_DRAFTS

PUBLISH_S = 0.6  # the server publishes its metrics twice a second
GIVE_UP_S = 20.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over a run; they can be added."""

    steps: float = 0.0
    rows: float = 0.0  # sequences, summed over the steps
    prompt_tokens: float = 0.0
    runs: float = 0.0  # runs of draft tokens
    propose_s: float = 0.0
    forward_s: float = 0.0
    sampling_s: float = 0.0
    verified: tuple[float, ...] = (0.0,) * MAX_DRAFTS  # draft tokens by place in their run
    accepted: tuple[float, ...] = (0.0,) * MAX_DRAFTS
    target: float = 0.0  # chosen tokens by who proposed them
    suffix: float = 0.0
    draft: float = 0.0

    @classmethod
    def read(cls, reading: Reading) -> Self:
        """The totals since the server's start."""
        chosen = reading.by_label("tandem_chosen_tokens_total", "origin")
        verified, accepted = (_by_place(reading, f"tandem_{name}_tokens_total") for name in ("draft", "accepted"))
        return cls(
            steps=reading.value("tandem_step_rows_count"),
            rows=reading.value("tandem_step_rows_sum"),
            prompt_tokens=reading.value("tandem_prompt_tokens_total"),
            runs=reading.value("tandem_drafts_total"),
            propose_s=reading.value("tandem_propose_seconds_total"),
            forward_s=reading.value("tandem_forward_seconds_total"),
            sampling_s=reading.value("tandem_sampling_seconds_total"),
            verified=verified,
            accepted=accepted,
            target=chosen["target"],
            suffix=chosen["suffix"],
            draft=chosen["draft"],
        )

    def __add__(self, other: Counters) -> Counters:
        return self._combined(other, 1)

    def __sub__(self, other: Counters) -> Counters:
        return self._combined(other, -1)

    def _combined(self, other: Counters, sign: int) -> Counters:
        values: dict[str, Any] = {}
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(ours, tuple):
                values[field.name] = tuple(a + sign * b for a, b in zip(ours, theirs, strict=True))
            else:
                values[field.name] = ours + sign * theirs
        return Counters(**values)

    @property
    def drafted(self) -> float:
        return sum(self.verified)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence got in a step that chose any: each has one of the target's own behind the drafts."""
        chosen = self.target + self.suffix + self.draft
        return chosen / self.target if self.target else 0.0

    @property
    def width(self) -> float:
        """Mean number of tokens in a step without those of prompts: rows and their drafts."""
        return (self.rows + self.drafted) / self.steps if self.steps else 0.0

    def acceptance(self) -> list[float | None]:
        """Share of the drafts at each place of their run that were accepted; None where there were none."""
        return [a / v if v else None for v, a in zip(self.verified, self.accepted, strict=True)]


def settled(metrics_url: str, generated: float) -> Reading:
    """A reading of an idle server that has published all it counted: so many generated tokens since its start.

    Raises:
        RuntimeError: it does not come to that number.
    """
    deadline = time.monotonic() + GIVE_UP_S
    while (found := read_metrics(metrics_url).value("tandem_generated_tokens_total")) != generated:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server counts {found:.0f} generated tokens, its clients {generated:.0f}")
        time.sleep(0.05)
    time.sleep(PUBLISH_S)  # values are published one after the other
    return read_metrics(metrics_url)


def _by_place(reading: Reading, name: str) -> tuple[float, ...]:
    places = reading.by_label(name, "position")
    return tuple(places.get(str(place), 0.0) for place in range(1, MAX_DRAFTS + 1))
