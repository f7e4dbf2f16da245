"""What `python -m perf run` does: measure with progress, then report and compare."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from perf import agreement, analyzer, baselines, compare, profile, report
from perf.compare import Change
from perf.errors import PerfError
from perf.runner import Run, new_directory
from perf.target import NotServedError, target

console = Console(stderr=True, highlight=False, soft_wrap=True)


def run(arguments: argparse.Namespace) -> int:
    """See `python -m perf run --help`."""
    chosen = profile.load(arguments.profile)
    if arguments.rounds is not None:
        if arguments.rounds < 1:
            raise PerfError(f"--rounds must be at least 1, not {arguments.rounds}")
        chosen = chosen.model_copy(update={"rounds": arguments.rounds})
    for note in analyzer.notes():
        console.print(f"note: {note}", markup=False)
    program, origin = analyzer.find()
    console.print(f"[bold]{chosen.name}[/]: {chosen.description}\nperf_analyzer {origin}")
    started = time.monotonic()
    try:
        with _progress() as bar:
            steps = chosen.rounds * len(chosen.load.levels) + 3
            task = bar.add_task("starting the server" if not arguments.url else "looking at the server", total=steps)

            def advance(text: str) -> None:
                if console.is_terminal:
                    bar.update(task, advance=1, description=text)
                else:
                    console.print(f"  {time.monotonic() - started:5.0f} s  {text}")

            with target(chosen, arguments.url, arguments.metrics_url) as served:
                directory = new_directory(chosen)
                summary = Run(program, chosen, served, directory).measure(advance)
    except NotServedError as skipped:
        console.print(str(skipped), markup=False)
        return 0
    console.print(f"  measured in {time.monotonic() - started:.0f} s; raw exports: {directory / 'raw'}")
    for line in agreement.disagreements(summary):
        console.print(f"  [yellow]warning[/] {line}: did somebody else use the server?")
    changes, baseline, notes = compared(summary, arguments.baseline)
    path = report.write(directory, summary, changes, baseline, notes)
    show(summary, changes, notes)
    console.print(f"report: {path}", markup=False)
    if arguments.store_baseline:
        console.print(f"baseline: {baselines.store(directory / 'summary.json', chosen.name)}", markup=False)
        return 0
    return 1 if any(change.flag == "worse" for change in changes) else 0


def compared(summary: Mapping[str, Any], wanted: Path | None) -> tuple[list[Change], dict[str, Any] | None, list[str]]:
    """The changes against a baseline, that baseline, and what is to be said of the comparison.

    Raises:
        PerfError: the wanted baseline does not fit. A stored one that does not fit is only noted.
    """
    path = wanted or baselines.path(summary["profile"]["name"])
    if wanted is None and not path.is_file():
        return [], None, []
    baseline = baselines.read(path)
    try:
        changes = compare.compare(summary, baseline)
    except PerfError as error:
        if wanted:
            raise
        return [], None, [f"not compared: {error}; store a new baseline with `make load-baseline`"]
    notes = [compare.too_few_rounds(summary, baseline), compare.busy(summary, baseline)]
    return changes, baseline, [note for note in notes if note]


def show(summary: Mapping[str, Any], changes: Sequence[Change], notes: Sequence[str]) -> None:
    """The figures in the terminal."""
    language = "tokens" in summary["points"][0]["all"]
    table = Table(title=summary["machine"])
    names = ["ttft_ms", "itl_ms", "latency_ms"] if language else ["latency_ms"]
    heads = [f"{name.removesuffix('_ms')} p50 / p90 / p99, ms" for name in names]
    for head in ["level", "tokens/s" if language else "requests/s", *heads]:
        table.add_column(head, justify="right")
    for point in summary["points"]:
        found = point["all"]
        rate = found["tokens_per_s" if language else "requests_per_s"]
        cells = [
            " / ".join(f"{found[name][p]:.0f}" for p in ("p50", "p90", "p99")) if name in found else ""
            for name in names
        ]
        table.add_row(f"{point['level']:g}", f"{rate:.1f}", *cells)
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    for change in changes:
        if change.flag:
            colour = "red" if change.flag == "worse" else "green"
            console.print(
                f"[{colour}]{change.flag}[/] than the baseline: {change.figure.title} at level {change.level:g}: "
                f"ratio {change.ratio:.3f} ({change.low:.3f}-{change.high:.3f}), p = {change.p:.3f}"
            )
    if changes:
        console.print(report.verdict(changes))


def _progress() -> Progress:
    return Progress(
        TextColumn("  [cyan]…[/] {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
