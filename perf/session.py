"""What `python -m perf run` does: measure with progress, then report and compare."""

from __future__ import annotations

import argparse
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from perf import agreement, analyzer, profile
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
    return 0


def _progress() -> Progress:
    return Progress(
        TextColumn("  [cyan]…[/] {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
