"""The search: one setting at a time, from the first value of each, as long as that makes serving cheaper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from perf.figures import percentile
from perf.plan.queueing import OpenLoad
from perf.plan.spec import Configuration, Plan, parts

FRACTIONS = np.linspace(0.02, 0.98, 49)  # of what a server can do at most
STEP = 0.03  # a setting is changed for a gain of more than that: less is noise
HOPELESS = 2 / 3  # of what the best carries: what cannot do that much is not tried again
SECONDS = 3600


@dataclass(frozen=True)
class Candidate:
    """A configuration that was measured, and what is predicted of it."""

    configuration: Configuration
    model: OpenLoad
    capacity: float  # requests per second within all targets, 0 if none is

    def predicted(self, target: str, arrivals: float) -> float:
        """A target's figure, milliseconds, at so many requests per second."""
        figure, percent = parts(target)
        return percentile(getattr(self.model, figure)(arrivals), percent)

    def machines(self, requests_per_s: float) -> int:
        """How many are needed for a load; a capacity of 0 has no answer."""
        return math.ceil(requests_per_s / self.capacity)

    def cost(self, price_per_hour: float, requests_per_s: float | None = None) -> float:
        """Of a million generated tokens, or of a thousand images where there are none.

        With machines loaded to so many requests per second each, by default the capacity.
        """
        rate = self.capacity if requests_per_s is None else requests_per_s
        tokens = self.model.tokens_per_request
        units = rate * tokens / 1e6 if tokens else rate / 1e3  # a second
        return price_per_hour / (SECONDS * units) if rate else math.inf


def candidate(configuration: Configuration, model: OpenLoad, targets: Mapping[str, float]) -> Candidate:
    """What a configuration's measurement means for the targets."""
    return Candidate(configuration, model, capacity(Candidate(configuration, model, 0.0), targets))


def capacity(of: Candidate, targets: Mapping[str, float]) -> float:
    """The highest rate, requests per second, at which every target is predicted to hold: all get worse with it."""
    held, broken = -1, len(FRACTIONS)  # places in FRACTIONS
    while broken - held > 1:
        middle = (held + broken) // 2
        arrivals = float(FRACTIONS[middle]) * of.model.most
        if all(of.predicted(target, arrivals) <= bound for target, bound in targets.items()):
            held = middle
        else:
            broken = middle
    return float(FRACTIONS[held]) * of.model.most if held >= 0 else 0.0


def search(plan: Plan, measure: Callable[[Configuration], OpenLoad]) -> tuple[Candidate, list[Candidate]]:
    """Change one setting at a time, take what is better, until nothing is.

    A value with which a server does less at most than `HOPELESS` of what the best one carries within the targets, all
    else equal, is not tried again beside other settings.

    Args:
        plan: the space and the targets.
        measure: asked once for each configuration that is looked at.

    Returns:
        The best, and all that were measured, in order.
    """
    seen: dict[tuple[object, ...], Candidate] = {}

    def look_at(configuration: Configuration) -> Candidate:
        key = tuple(configuration.values())
        if key not in seen:
            seen[key] = candidate(configuration, measure(configuration), plan.targets)
        return seen[key]

    best = look_at(plan.start)
    hopeless: set[tuple[str, object]] = set()
    while True:
        before = best
        for name, values in plan.space.items():
            for value in values:
                if (name, value) in hopeless:
                    continue
                other = look_at({**best.configuration, name: value})
                if _is_better(other, best):
                    best = other
                elif other.model.most < HOPELESS * best.capacity:
                    hopeless.add((name, value))
        if best is before:
            return best, list(seen.values())


def _is_better(one: Candidate, other: Candidate) -> bool:
    if one.capacity or other.capacity:
        return one.capacity > other.capacity * (1 + STEP)
    return one.model.most > other.model.most * (1 + STEP)  # none keeps the targets: towards more throughput


def grid(plan: Plan) -> Iterator[Configuration]:
    """All configurations of the space."""
    for values in itertools.product(*plan.space.values()):
        yield dict(zip(plan.space, values, strict=True))


@dataclass(frozen=True)
class Operating:
    """A configuration at a load of its own."""

    candidate: Candidate
    requests_per_s: float
    cost: float  # of a million tokens or a thousand images
    p99_ms: float  # of what a client waits for first


def p99(model: OpenLoad) -> str:
    """Name of the latency that the front is drawn by."""
    return model.first_figure.replace("_ms", "_p99_ms")


def pareto(candidates: list[Candidate], price_per_hour: float) -> list[Operating]:
    """Operating points that no other beats in cost and in p99 latency at once, by falling cost."""
    points = [
        Operating(one, rate, one.cost(price_per_hour, rate), one.predicted(p99(one.model), rate))
        for one in candidates
        for rate in (one.model.most * fraction for fraction in (0.2, 0.4, 0.6, 0.75, 0.85, 0.92))
    ]
    points.sort(key=lambda point: (point.cost, point.p99_ms))
    front: list[Operating] = []
    for point in points:
        if not front or point.p99_ms < front[-1].p99_ms:
            front.append(point)
    return front[::-1]
