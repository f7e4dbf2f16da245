"""The report of a plan: a Markdown page with a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perf import plots
from perf.plan.search import Candidate, Operating, p99, pareto
from perf.plan.spec import Plan

if TYPE_CHECKING:
    from perf.plan.session import Verified


def conclusions(plan: Plan, best: Candidate, verified: Sequence[Verified], sustained: float) -> list[str]:
    """What was found, in sentences."""
    targets = ", ".join(f"{name} <= {bound:g}" for name, bound in plan.targets.items())
    if not best.capacity:
        return [f"No load keeps {targets}."]
    settings = ", ".join(f"{name} = {value}" for name, value in best.configuration.items())
    lines = [f"Chosen: {settings}.", f"Predicted to keep {targets} up to {best.capacity:.2f} requests/s."]
    for one in verified:
        pairs = ", ".join(
            f"{name} {one.measured[name]:.0f} ({one.predicted[name]:.0f} predicted)" for name in one.predicted
        )
        verdict = "kept" if one.kept(plan.targets) else "NOT kept"
        lines.append(f"Measured at {one.requests_per_s:.2f} requests/s, Poisson: {pairs}: {verdict}.")
    if sustained:
        machines = math.ceil(plan.requests_per_s / sustained)
        cost = best.cost(plan.price_per_hour, sustained)
        tokens = sustained * best.model.tokens_per_request
        lines += [
            f"One machine: {sustained:.2f} requests/s{f', {tokens:.0f} tokens/s' if tokens else ''}; "
            f"{cost:.3g} per {plan.unit} at {plan.price_per_hour:g} per hour.",
            f"{plan.requests_per_s:g} requests/s: {machines} machines, {machines * plan.price_per_hour:.2f} per hour.",
        ]
    return lines


def write(
    directory: Path,
    plan: Plan,
    measured: Sequence[Candidate],
    best: Candidate,
    verified: Sequence[Verified],
    sustained: float,
    machine: str,
) -> Path:
    """Write plan.md and plan.svg; returns the page's path."""
    front = pareto(list(measured), plan.price_per_hour)
    latency = p99(best.model)
    (directory / "plan.svg").write_bytes(plots.pareto(points(measured, plan.price_per_hour), front, latency, plan))
    rows = [
        f"| {_settings(point.candidate)} | {point.requests_per_s:.2f} | {point.cost:.3g} | {point.p99_ms:.0f} |"
        for point in front
    ]
    page = [
        f"# {plan.name}", "", plan.description, "", *conclusions(plan, best, verified, sustained), "",
        f"{len(measured)} configurations were measured on {machine}.", "",
        "## Cheapest for each latency (predicted)", "", "![cost against latency](plan.svg)", "",
        f"| settings | requests/s and machine | cost per {plan.unit} | {latency} |",
        "|---|---:|---:|---:|", *rows, "",
    ]  # fmt: skip
    path = directory / "plan.md"
    path.write_text("\n".join(page), encoding="utf-8")
    return path


def points(measured: Sequence[Candidate], price: float) -> list[Operating]:
    """All operating points, for the plot."""
    return [point for one in measured for point in pareto([one], price)]


def _settings(of: Candidate) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.configuration.items())
