"""What a comparison of two ways to answer one request says: are they the same, and how much faster is the second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from client.response import ORIGINS, Result


def steps(result: Result) -> int | None:
    """Forward passes that chose tokens of an answer; None where the server did not say who proposed them.

    Each ends with a token of the target's own, but for one that a draft ended: an accepted end token.
    """
    if not result.origins:
        return None
    return result.origins.count(ORIGINS[0]) + (result.origins[-1] != ORIGINS[0])


@dataclass
class Comparison:
    """Results of both ways, one of each per round.

    Attributes:
        names: how the ways are called, the plain one first.
        rounds: pairs of results.
    """

    names: tuple[str, str]
    rounds: list[tuple[Result, Result]] = field(default_factory=list)

    def difference(self) -> str | None:
        """Where an answer first differs from the first round's plain one; None if all are the same."""
        wanted = self.rounds[0][0]
        for number, pair in enumerate(self.rounds, 1):
            for name, result in zip(self.names, pair, strict=True):
                if (place := first_difference(wanted, result)) is not None:
                    return f"round {number}, {name}: token {place + 1} is not that of {self.names[0]} in round 1"
        return None

    def speed_ups(self) -> list[float]:
        """How much sooner the second way ended, per round."""
        return [plain.timing.total_s / other.timing.total_s for plain, other in self.rounds]

    def lines(self) -> list[str]:
        """The conclusion, for people."""
        difference = self.difference()
        lines = ["identical text: yes" if difference is None else f"identical text: NO ({difference})"]
        width = max(map(len, self.names))
        for name, results in zip(self.names, zip(*self.rounds, strict=True), strict=True):
            lines.append(f"{name:{width}}  {_times(results)}")
        speed_ups = self.speed_ups()
        spread = f" ({min(speed_ups):.2f} to {max(speed_ups):.2f}, {len(speed_ups)} rounds)" if speed_ups[1:] else ""
        lines.append(f"speed-up  {statistics.median(speed_ups):.2f}{spread}")
        return [*lines, self._drafts()]

    def _drafts(self) -> str:
        result = self.rounds[-1][1]
        by_origin = {origin: (result.origins or ()).count(origin) for origin in ORIGINS[1:]}
        parts = ", ".join(f"{count} of {origin}" for origin, count in by_origin.items() if count)
        text = f"drafts    {result.drafted_tokens} verified, {result.accepted_draft_tokens} accepted"
        text += f" ({parts})" if parts else ""
        passes = steps(result)
        return f"{text}; {result.generated_tokens / passes:.2f} tokens per step" if passes else text


def first_difference(wanted: Result, found: Result) -> int | None:
    """The first place at which two answers have not the same token; None if they are the same, text included."""
    ours, theirs = wanted.token_ids or (), found.token_ids or ()
    if ours == theirs and wanted.text == found.text:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _times(results: Sequence[Result]) -> str:
    """Medians over the rounds."""
    timings = [result.timing for result in results]
    total = statistics.median(timing.total_s for timing in timings)
    ttft = statistics.median(timing.ttft_s or timing.total_s for timing in timings)
    rate = statistics.median(timing.tokens_per_s or 0.0 for timing in timings)
    return f"{total:.2f} s, TTFT {ttft * 1000:.0f} ms, {rate:.1f} tokens/s"
