"""What an open load does to a server that was measured under closed ones.

Measured is a closed loop at some numbers of streams n: the rate X(n) at which requests end, and how long first tokens
and the gaps between tokens take. The server is then modelled as one station whose rate depends on how many requests it
holds (a flow-equivalent server: Chandy, Herzog and Woo, "Parametric analysis of queuing networks", IBM J. Res. Dev.
19(1), 1975): with Poisson arrivals at rate a, the number of requests in it is a birth-death process,

    P(n) ~ a^n / (X(1) X(2) ... X(n)),

and beyond `slots` requests wait, in order, for X(slots) ends per second. A request that arrives sees n requests with
probability P(n), so its time to first token, or to its whole answer, is that of n + 1 streams, after the wait, if
n + 1 > slots. Tokens are made in state n in proportion to P(n) X(n). What the model leaves out: that X depends on
prompts and answers of the moment and not only on their number. How far it is off is measured, see `perf.plan.search`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

SAMPLES = 20_000
MOST_REQUESTS = 4096  # in the server and its queue: the model's horizon
SEED = 7


@dataclass(frozen=True)
class Level:
    """A closed loop of some streams, as measured."""

    requests_per_s: float
    latency_ms: Values  # [requests]
    ttft_ms: Values = field(default_factory=lambda: np.empty(0))  # [requests]; none of requests without tokens
    itl_ms: Values = field(default_factory=lambda: np.empty(0))  # [tokens after the first of each request]
    tokens_per_request: float = 0.0


class OpenLoad:
    """Predicts latencies of Poisson arrivals for a server that was measured at some numbers of streams."""

    def __init__(self, levels: Mapping[int, Level], slots: int) -> None:
        """`levels` by the number of streams, at least one, none above `slots`; `slots`: requests that run at once."""
        self._streams = sorted(levels)
        self._levels = levels
        self.slots = slots
        rates = [levels[n].requests_per_s for n in self._streams]
        places = np.arange(1, slots + 1)
        # Below the first level a stream makes what it makes there; between two levels the rate is on a line.
        inner = np.interp(places, self._streams, rates)
        first = self._streams[0]
        self._rates: Values = np.where(places < first, rates[0] * places / first, inner)

    @property
    def tokens_per_request(self) -> float:
        """Generated tokens, on average over the levels."""
        return float(np.mean([level.tokens_per_request for level in self._levels.values()]))

    @property
    def first_figure(self) -> str:
        """What a client waits for first: the first token, or an answer that has none."""
        return "ttft_ms" if self.tokens_per_request else "latency_ms"

    @property
    def most(self) -> float:
        """Requests per second that no open load may reach."""
        return float(self._rates[-1])

    def states(self, arrivals: float) -> Values:
        """P(n) for n = 0, 1, ...; float64.

        Raises:
            ValueError: the server cannot keep up with `arrivals` requests per second.
        """
        if not 0 < arrivals < self.most:
            raise ValueError(f"{arrivals:g} requests/s are not between 0 and {self.most:g}")
        rates = np.concatenate([self._rates, np.full(MOST_REQUESTS - self.slots, self.most)])
        logs = np.concatenate([[0.0], np.cumsum(np.log(arrivals) - np.log(rates))])
        weights = np.exp(logs - logs.max())
        states: Values = weights / weights.sum()
        return states

    def ttft_ms(self, arrivals: float) -> Values:
        """A sample of times to first token; float64 [SAMPLES]."""
        return self._after_wait("ttft_ms", arrivals)

    def latency_ms(self, arrivals: float) -> Values:
        """A sample of times to the whole answer; float64 [SAMPLES]."""
        return self._after_wait("latency_ms", arrivals)

    def _after_wait(self, figure: str, arrivals: float) -> Values:
        random = np.random.default_rng(SEED)
        states = self.states(arrivals)
        held = random.choice(len(states), SAMPLES, p=states) + 1  # with the one that arrives
        waiting = np.maximum(0, held - self.slots)
        wait_s = np.where(waiting > 0, random.gamma(np.maximum(waiting, 1), 1 / self.most), 0.0)
        found: Values = self._sample(figure, np.minimum(held, self.slots), random) + 1000 * wait_s
        return found

    def itl_ms(self, arrivals: float) -> Values:
        """A sample of inter-token latencies; float64 [SAMPLES]."""
        random = np.random.default_rng(SEED)
        states = self.states(arrivals)
        held = np.minimum(np.arange(len(states)), self.slots)
        weights = states * np.where(held > 0, self._rates[np.maximum(held, 1) - 1], 0.0)
        return self._sample("itl_ms", random.choice(held, SAMPLES, p=weights / weights.sum()), random)

    def _sample(self, figure: str, streams: npt.NDArray[np.int64], random: np.random.Generator) -> Values:
        """One measured value for each number of streams, of the level below or above it, by how close they are."""
        above = np.clip(np.searchsorted(self._streams, streams), 0, len(self._streams) - 1)
        below = np.maximum(above - 1, 0)
        levels = np.array(self._streams)
        span = np.maximum(levels[above] - levels[below], 1)
        share = np.clip((streams - levels[below]) / span, 0, 1)
        chosen = np.where(random.random(len(streams)) < share, above, below)
        found = np.empty(len(streams))
        for place, count in enumerate(self._streams):
            here = chosen == place
            found[here] = random.choice(getattr(self._levels[count], figure), int(here.sum()))
        return found
