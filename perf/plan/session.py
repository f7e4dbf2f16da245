"""What `python -m perf plan` does: search, verify under an open load, report, and write the choice down."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.environment import machine
from launcher.settings_file import SETTINGS_FILE, write_settings
from perf import analyzer
from perf.plan import report, spec
from perf.plan.evaluate import RUNS, serving
from perf.plan.precision import settings
from perf.plan.search import Candidate, candidate, grid, search
from perf.plan.spec import Plan

BACK_OFF = 0.85  # where the open load does not keep a target, it is tried again with so much less
TRIES = 4
MOST_DEARER = 0.1  # that what the search finds may be than the cheapest of the whole grid

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Verified:
    """The chosen configuration under Poisson arrivals, which the search has not seen."""

    requests_per_s: float
    predicted: dict[str, float]  # by target, and the medians
    measured: dict[str, float]

    def kept(self, targets: Mapping[str, float]) -> bool:
        return all(self.measured[name] <= bound for name, bound in targets.items())


def run(arguments: argparse.Namespace) -> int:
    """See `python -m perf plan --help`; 1 if no configuration keeps the targets."""
    changes: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("requests_per_s", "price_per_hour", "requests")
        if getattr(arguments, name) is not None
    }
    if arguments.target:
        changes["targets"] = dict(arguments.target)
    plan = spec.load(arguments.plan, changes)
    program, _ = analyzer.find()
    started = time.monotonic()

    def advance(text: str) -> None:
        console.print(f"  {time.monotonic() - started:5.0f} s  {text}", markup=False)

    def measure(configuration: spec.Configuration) -> Any:
        with serving(program, plan, configuration, advance) as server:
            return server.closed_loops(advance)

    console.print(f"[bold]{plan.name}[/]: {plan.description}")
    dearer = 0.0
    if arguments.grid:
        measured = [candidate(one, measure(one), plan.targets) for one in grid(plan)]
        best = max(measured, key=lambda one: (one.capacity, one.model.most))
        dearer = compare_search(plan, measured, best)
    else:
        best, measured = search(plan, measure)
    directory = RUNS / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory.mkdir(parents=True, exist_ok=True)
    verified = []
    if best.capacity:
        with serving(program, plan, best.configuration, advance) as server:
            verified = verify(plan, best, lambda rate: server.open_load(rate, advance))
    sustained = next((one.requests_per_s for one in reversed(verified) if one.kept(plan.targets)), 0.0)
    path = report.write(directory, plan, measured, best, verified, sustained, machine())
    show(plan, measured, best, verified, sustained)
    console.print(f"report: {path}", markup=False)
    if not sustained:
        console.print("[red]no configuration of this space keeps the targets[/]; see the report for what comes closest")
        return 1
    if dearer > MOST_DEARER:
        console.print(f"[red]the search's choice would cost {dearer:.0%} more[/] than the cheapest of the grid")
        return 1
    if arguments.apply:
        write_settings(
            SETTINGS_FILE, spec.environment(settings(plan, best.configuration)), f"python -m perf plan {arguments.plan}"
        )
        console.print(f"`make serve` will use it: {SETTINGS_FILE.name}", markup=False)
    return 0


def compare_search(plan: Plan, measured: list[Candidate], best: Candidate) -> float:
    """Let the search choose from a grid that is measured, and say how much more its choice costs than the best."""
    models = {tuple(one.configuration.values()): one.model for one in measured}
    chosen, looked_at = search(plan, lambda configuration: models[tuple(configuration.values())])
    dearer = best.capacity / chosen.capacity - 1 if chosen.capacity else float(best.capacity > 0)
    console.print(
        f"The search would have looked at {len(looked_at)} of these {len(measured)}, and chosen one that costs "
        f"{dearer:.1%} more than the cheapest."
    )
    return dearer


def verify(plan: Plan, best: Candidate, open_load: Any) -> list[Verified]:
    """Measure Poisson arrivals at half the predicted capacity, then at all of it, and below it until targets hold."""
    medians = ["ttft_p50_ms", "itl_p50_ms"] if best.model.tokens_per_request else ["latency_p50_ms"]
    names = [*plan.targets, *medians]
    done: list[Verified] = []
    for rate in (best.capacity / 2, *(best.capacity * BACK_OFF**step for step in range(TRIES))):
        found = open_load(rate)
        measured = {}
        for name in names:
            figure, percent = spec.parts(name)
            measured[name] = found[figure][f"p{percent}"]
        predicted = {name: best.predicted(name, rate) for name in names}
        done.append(Verified(rate, predicted, measured))
        if len(done) > 1 and done[-1].kept(plan.targets):
            break
    return done


def show(plan: Plan, measured: list[Candidate], best: Candidate, verified: list[Verified], sustained: float) -> None:
    """The choice in the terminal."""
    table = Table(title=f"{len(measured)} configurations, {machine()}")
    for head in (*plan.space, "requests/s at most", "within targets, predicted", f"cost per {plan.unit}"):
        table.add_column(head, justify="right", overflow="fold")
    for one in sorted(measured, key=lambda one: -one.capacity):
        cost = one.cost(plan.price_per_hour)
        style = "bold" if one is best else None
        cells = [*map(str, one.configuration.values()), f"{one.model.most:.2f}", f"{one.capacity:.2f}", f"{cost:.3g}"]
        table.add_row(*cells, style=style)
    console.print(table)
    for line in report.conclusions(plan, best, verified, sustained):
        console.print(line, markup=False)
