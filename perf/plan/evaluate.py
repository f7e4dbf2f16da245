"""Measures configurations: each on a server of its own, first in closed loops, then, if wanted, under an open load."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.runtime import CACHE
from perf import export, figures
from perf.plan.precision import settings
from perf.plan.queueing import Level, OpenLoad
from perf.plan.spec import Configuration, Plan
from perf.profile import Profile
from perf.runner import Run, new_directory
from perf.target import target
from tandem.settings import CoordinatorSettings

RUNS = CACHE / "plans"
ROUNDS = 2
LEAST_PER_STREAM = 2
OPEN_S = 5  # an open load lasts so long at least; perf_analyzer refuses fewer requests than come in a second

Advance = Callable[[str], None]


class ConfigurationServer:
    """A server with one configuration, for as many measurements as are wanted."""

    def __init__(self, program: Path, plan: Plan, configuration: Configuration, served: Any) -> None:
        self._program, self._plan, self._served = program, plan, served
        self.configuration = configuration
        # A server of images has no bound but its queue's: what the loops did not see waits.
        limit = configuration.get("max_running", CoordinatorSettings().max_running)
        self.slots = int(limit) if plan.model == "generate" else max(plan.streams)

    def closed_loops(self, advance: Advance) -> OpenLoad:
        """Measure the plan's numbers of streams, as far as they can run at once, and return the model made of them."""
        streams = sorted({min(count, self.slots) for count in self._plan.streams})
        load = {"kind": "concurrency", "levels": streams}
        counts = [max(self._plan.requests, LEAST_PER_STREAM * count) for count in streams]
        summary, directory = self._measure(load, counts, ROUNDS, advance)
        levels = {}
        for point in summary["points"]:
            requests = [r for entry in point["rounds"] for r in export.read(directory / entry["export"]).requests]
            found = point["all"]
            levels[int(point["level"])] = Level(
                found["requests_per_s"],
                figures.latency_ms(requests),
                figures.ttft_ms(requests),
                figures.itl_ms(requests),
                found.get("tokens", 0) / found["requests"],
            )
        return OpenLoad(levels, self.slots)

    def open_load(self, arrivals: float, advance: Advance) -> dict[str, Any]:
        """The figures of Poisson arrivals at so many requests per second; see `perf.figures`."""
        count = max(3 * self._plan.requests, math.ceil(OPEN_S * arrivals))
        summary, _ = self._measure({"kind": "poisson", "levels": [arrivals]}, [count], 1, advance)
        found: dict[str, Any] = summary["points"][0]["all"]
        return found

    def _measure(
        self, load: dict[str, Any], counts: list[int], rounds: int, advance: Advance
    ) -> tuple[dict[str, Any], Path]:
        profile = _profile(self._plan, self.configuration, load, counts, rounds)
        directory = new_directory(profile, RUNS)
        return Run(self._program, profile, self._served, directory).measure(advance), directory


def _profile(plan: Plan, configuration: Configuration, load: dict[str, Any], counts: list[int], rounds: int) -> Profile:
    name = "-".join([plan.name, *(f"{key}={value}" for key, value in configuration.items()), load["kind"]])
    return Profile.model_validate(
        {
            "name": name.replace("/", "_"),
            "description": plan.description,
            "model": plan.model,
            "load": load,
            "requests": counts,
            "rounds": rounds,
            "inputs": plan.inputs.model_dump(),
            "server": settings(plan, configuration),
            "timeout_s": plan.timeout_s,
        }
    )


@contextlib.contextmanager
def serving(program: Path, plan: Plan, configuration: Configuration, advance: Advance) -> Iterator[ConfigurationServer]:
    """Start a server with this configuration.

    Raises:
        PerfError: it does not start.
    """
    shown = ", ".join(f"{name} {value}" for name, value in configuration.items())
    started = time.monotonic()
    advance(f"starting a server with {shown}")
    profile = _profile(plan, configuration, {"kind": "concurrency", "levels": [1]}, [1], 1)
    with target(profile, None, None) as served:
        advance(f"ready after {time.monotonic() - started:.0f} s")
        yield ConfigurationServer(program, plan, configuration, served)
