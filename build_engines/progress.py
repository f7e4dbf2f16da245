"""What the user sees while an engine is built: one line per stage with its time, and no noise of libraries."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from build_engines import interrupt

# A stream of our own, so that stages stay visible while the libraries' output is kept away.
console = Console(file=os.fdopen(os.dup(2), "w", buffering=1), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def stage(text: str) -> Iterator[None]:
    """Show `text` with a running clock, then what it took; on failure leave a line that says where it stopped."""
    start = time.monotonic()
    bar = Progress(
        TextColumn("  [cyan]…[/] {task.description}"), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    try:
        with bar:
            bar.add_task(text, total=None)
            yield
            interrupt.check()
    except BaseException:
        console.print(f"  [red]✗[/] {text}")
        raise
    console.print(f"  [green]✓[/] {text} [dim]{time.monotonic() - start:.1f} s[/]")


@contextlib.contextmanager
def counted(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Like `stage` for work of known size: yields a function that is told how much more is done."""
    start = time.monotonic()
    bar = Progress(
        TextColumn("  [cyan]…[/] {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    try:
        with bar:
            task = bar.add_task(text, total=total)
            yield lambda done: bar.advance(task, done)
            interrupt.check()
    except BaseException:
        console.print(f"  [red]✗[/] {text}")
        raise
    console.print(f"  [green]✓[/] {text} [dim]{time.monotonic() - start:.1f} s[/]")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries write to stdout and stderr, C++ parts included, off the screen.

    If the block fails with anything but a `BuildError` or an interrupt, the last lines are shown after all.
    """
    from build_engines.errors import BuildError

    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    with tempfile.TemporaryFile() as log:
        try:
            for descriptor, _ in saved:
                os.dup2(log.fileno(), descriptor)
            yield
        except (BuildError, KeyboardInterrupt):
            raise
        except BaseException:
            sys.stdout.flush()
            sys.stderr.flush()
            log.seek(0)
            for line in log.read().decode("utf-8", "replace").splitlines()[-20:]:
                console.print(f"    {line}", style="dim", markup=False)
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, copy in saved:
                os.dup2(copy, descriptor)
                os.close(copy)


def silence_libraries() -> None:
    """Before the heavy imports: no usage reports, no warnings meant for developers of those libraries."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The converters report usage to a server if this module can be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    warnings.filterwarnings("ignore")
    for name in ("nncf", "optimum", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
