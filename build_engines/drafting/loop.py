"""A training that can be interrupted at any step and goes on from its checkpoint, within a budget of steps or time."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from build_engines.errors import BuildError
from build_engines.progress import console

CHECKPOINT = "checkpoint.pt"
MEASURE_EVERY = 50
LONGEST_STEP = 10.0  # seconds that a step counts at most: a stopped process should not use up its time
_SAVE_EVERY = 120.0  # seconds


class Budget(Protocol):
    """When a training is over: after `total_steps`, or, if that is None, after `minutes` of steps."""

    @property
    def total_steps(self) -> int | None: ...
    @property
    def minutes(self) -> float | None: ...


class State(Protocol):
    """How far a training is."""

    step: int
    seconds: float  # spent in steps, over all runs
    agreement: tuple[float, ...]  # on held-out answers, when last measured


def run(
    state: State, budget: Budget, step: Callable[[float], float], measure: Callable[[], tuple[float, ...]],
    save: Callable[[], None],
) -> None:  # fmt: skip
    """Take steps until the budget is used up.

    Args:
        step: takes one; is given the share of the budget that is used up, returns the loss.
        save: writes the checkpoint, now and then and at the end.

    Raises:
        KeyboardInterrupt: after a signal; the checkpoint is written.
    """
    saved = time.monotonic()
    with _deferred_signals() as stopped, _bar() as show:
        while (progress := _progress(budget, state)) < 1:
            started = time.monotonic()
            value = step(progress)
            state.step += 1
            state.seconds += min(time.monotonic() - started, LONGEST_STEP)
            if state.step % MEASURE_EVERY == 0:
                state.agreement = measure()
            show(state, progress, value)
            if time.monotonic() - saved > _SAVE_EVERY or stopped():
                save()
                saved = time.monotonic()
            if stopped():
                raise KeyboardInterrupt(f"the checkpoint of step {state.step} is kept: the same command goes on there")
    state.agreement = measure()
    save()


def rate(progress: float, warmup: float) -> float:
    """Share of the full learning rate: linear warm-up, then half a cosine down to 2 %."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def optimizer(parameters: list[torch.nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; norms do not decay."""
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    norms = [parameter for parameter in parameters if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def write_checkpoint(directory: Path, plan: str, state: State, **content: Any) -> None:
    """Keep `content` and how far the training is; `plan` is the hash of its settings."""
    partial = directory / f".{CHECKPOINT}.partial-{os.getpid()}"
    progress = {"step": state.step, "seconds": state.seconds, "agreement": list(state.agreement)}
    torch.save({"plan": plan, **progress, **content}, partial)
    partial.replace(directory / CHECKPOINT)


def read_checkpoint(directory: Path, plan: str) -> dict[str, Any] | None:
    """What `write_checkpoint` kept, or None if there is nothing.

    Raises:
        BuildError: it belongs to other settings.
    """
    path = directory / CHECKPOINT
    if not path.is_file():
        return None
    stored: dict[str, Any] = torch.load(path, weights_only=True)
    if stored["plan"] != plan:
        raise BuildError(f"{path} belongs to a training with other settings: use another --work directory or remove it")
    console.print(f"    going on from step {stored['step']}")
    return stored


def _progress(budget: Budget, state: State) -> float:
    if budget.total_steps is not None:
        return state.step / budget.total_steps
    return state.seconds / (60 * (budget.minutes or 1))


@contextmanager
def _deferred_signals() -> Iterator[Any]:
    """Turn Ctrl-C and a plain kill into a flag, so that no step is cut in two; yields a function that reads it."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on a terminal, a line every `MEASURE_EVERY` steps elsewhere; yields what updates it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("  [cyan]…[/] training"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
        TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    smooth: list[float] = []
    with bar:
        task = bar.add_task("", total=1.0)

        def show(state: State, progress: float, value: float) -> None:
            smooth.append(value)
            recent = sum(smooth[-50:]) / len(smooth[-50:])
            shares = " ".join(f"{share:.3f}" for share in state.agreement)
            text = f"step {state.step}  loss {recent:.3f}  held-out agreement {shares}"
            bar.update(task, completed=progress, description=text)
            if not console.is_terminal and state.step % MEASURE_EVERY == 0:
                console.print(f"    {progress:4.0%}  {text}  {state.seconds:.0f} s")

        yield show
