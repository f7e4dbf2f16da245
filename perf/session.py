"""What `python -m perf run` does: measure with progress, compare, report."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from perf import agreement, analyzer, baselines, checkout, compare, profile, report, turns
from perf.compare import Change
from perf.errors import PerfError
from perf.profile import Profile
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
    if arguments.against:
        if arguments.url or arguments.baseline or arguments.store_baseline:
            raise PerfError("--against starts both servers: it goes without --url, --baseline and --store-baseline")
        turns.check(chosen)
        checkout.known(arguments.against)
    for note in analyzer.notes():
        console.print(f"note: {note}", markup=False)
    program, origin = analyzer.find()
    console.print(f"[bold]{chosen.name}[/]: {chosen.description}\nperf_analyzer {origin}")
    try:
        if arguments.against:
            return in_turns(chosen, program, arguments.against)
        return one(chosen, program, arguments)
    except NotServedError as skipped:
        console.print(str(skipped), markup=False)
        return 0


def one(chosen: Profile, program: Path, arguments: argparse.Namespace) -> int:
    """Measure one server and compare it with a baseline; 1 if it is worse."""
    with (
        _advance(chosen.rounds * len(chosen.load.levels) + 3) as advance,
        target(chosen, arguments.url, arguments.metrics_url) as served,
    ):
        directory = new_directory(chosen)
        summary = Run(program, chosen, served, directory).measure(advance)
    changes, baseline, notes = compared(summary, arguments.baseline)
    commit = ""
    if baseline and any(change.flag for change in changes) and not arguments.store_baseline:
        commit, why_not = confirmable(chosen, summary, baseline)
        notes.append(
            why_not or f"what differs may be the machine's doing: commit {commit} is measured in turns with this"
        )
    finish(directory, summary, changes, baseline, notes)
    if arguments.store_baseline:
        console.print(f"baseline: {baselines.store(directory / 'summary.json', chosen.name)}", markup=False)
        return 0
    if commit:
        return in_turns(chosen, program, commit)
    return worse(changes)


def in_turns(chosen: Profile, program: Path, commit: str) -> int:
    """Measure the files here and a commit in turns, and compare the two; 1 if the files here are worse."""
    with (
        _advance(chosen.rounds * len(chosen.load.levels) + 3) as advance,
        target(chosen, commit=commit) as old,
        target(chosen) as new,
    ):
        directory = new_directory(chosen)
        summary, baseline = turns.measure(program, chosen, new, old, directory, advance)
    changes = compare.compare(summary, baseline, in_turns=True)
    finish(directory, summary, changes, baseline, compare.notes(summary, baseline, in_turns=True), in_turns=True)
    return worse(changes)


def worse(changes: Sequence[Change]) -> int:
    """The exit status."""
    return int(any(change.flag == "worse" for change in changes))


def confirmable(chosen: Profile, summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[str, str]:
    """The baseline's commit where it can be measured again beside this run, else nothing, and why it cannot."""
    unlike = [key for key in ("environment", "engines") if summary["server"].get(key) != baseline["server"].get(key)]
    commit = str(baseline["commit"])
    try:
        turns.check(chosen)
        if not summary["server"]["started_for_this_run"] or not baseline["server"]["started_for_this_run"]:
            raise PerfError("a server was given, not started")
        if unlike:
            raise PerfError(f"the servers' {' and '.join(unlike)} differ, not only their commits")
        if not commit or commit.endswith(checkout.CHANGED):
            raise PerfError(f"the baseline is of {'files that were not committed' if commit else 'an unknown commit'}")
        return checkout.known(commit), ""
    except PerfError as error:
        return "", f"what differs may be the machine's doing, and is not measured again in turns: {error}"


def finish(
    directory: Path,
    summary: Mapping[str, Any],
    changes: Sequence[Change],
    baseline: Mapping[str, Any] | None,
    notes: Sequence[str],
    *,
    in_turns: bool = False,
) -> None:
    """Report what was measured."""
    console.print(f"  measured in {summary['seconds']:.0f} s; raw exports: {directory / 'raw'}")
    for line in agreement.disagreements(summary):
        console.print(f"  [yellow]warning[/] {line}: did somebody else use the server?")
    path = report.write(directory, summary, changes, baseline, notes, in_turns=in_turns)
    show(summary, changes, notes)
    console.print(f"report: {path}", markup=False)


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
    return changes, baseline, compare.notes(summary, baseline)


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


@contextlib.contextmanager
def _advance(steps: int) -> Iterator[Callable[[str], None]]:
    """What tells of progress: a bar in a terminal, else lines."""
    started = time.monotonic()
    with _progress() as bar:
        task = bar.add_task("starting the server", total=steps)

        def advance(text: str) -> None:
            if console.is_terminal:
                bar.update(task, advance=1, description=text)
            else:
                console.print(f"  {time.monotonic() - started:5.0f} s  {text}")

        yield advance


def _progress() -> Progress:
    return Progress(
        TextColumn("  [cyan]…[/] {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
