"""Train a drafter on the target's answers; what was done can be interrupted at any step, and goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from build_engines.drafting import objective
from build_engines.drafting.network import Network, Shape
from build_engines.drafting.shards import Answers
from build_engines.drafting.vocabulary import candidates, most_frequent
from build_engines.drafting.windows import Sampler, Windows
from build_engines.errors import BuildError
from build_engines.progress import console

CHECKPOINT = "checkpoint.pt"
MEASURED_WINDOWS, MEASURE_EVERY = 48, 50
REGRESSED, RIDGE = 80_000, 0.01  # tokens, and the share of their mean variance that is added
LONGEST_STEP = 10.0  # seconds that a step counts at most: a stopped process should not use up its time


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. Equal plans, answers and `total_steps` give equal weights, interrupted or not."""

    inner: tuple[int, ...] = (1024,)
    vocabulary: int = 16384
    steps: int = 3  # of the drafter, unrolled
    windows: int = 16
    length: int = 32
    candidates: int = 2048
    rate: float = 6e-4
    warmup: float = 0.03  # of the whole
    acceptance: float = 0.25  # of the whole, at its end, for which acceptance is maximized
    weight_decay: float = 0.05
    dropout: float = 0.15  # a few hundred thousand tokens are soon known by heart
    seed: int = 7
    bfloat16: bool = True
    total_steps: int | None = None
    minutes: float | None = None  # instead: as many steps as there is time for, so weights depend on the machine

    def key(self) -> str:
        """Hash over what the weights depend on."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Trained:
    """The state of a training run."""

    network: Network
    optimizer: torch.optim.Optimizer
    vocabulary: npt.NDArray[np.int32]  # ids, the most frequent first
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all runs
    agreement: tuple[float, ...] = ()  # on held-out answers, when last measured


def train(
    directory: Path, plan: Plan, answers: Answers, held_out: Answers, table: torch.Tensor, end_ids: tuple[int, ...]
) -> Trained:
    """Start, or go on from the checkpoint in `directory`, until the plan is done.

    Args:
        table: float32 [vocabulary of the target, hidden], its embedding and LM head.

    Raises:
        BuildError: the checkpoint belongs to another plan.
        KeyboardInterrupt: after a signal; the checkpoint is written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = _resume(directory, plan, table.shape[1]) or _begin(plan, answers, table, end_ids)
    sampler = Sampler(answers, plan.seed, count=plan.windows, length=plan.length, steps=plan.steps)
    check = Sampler(held_out, plan.seed, count=MEASURED_WINDOWS, length=plan.length, steps=plan.steps).evenly()
    saved = time.monotonic()
    console.print(f"    {state.network.parameter_count / 1e6:.2f} M weights, {len(answers.tokens)} tokens of answers")
    with _deferred_signals() as stopped, _bar() as show:
        while (progress := _progress(plan, state)) < 1:
            started = time.monotonic()
            value = _step(state, plan, progress, sampler.batch(state.step), table)
            state.step += 1
            state.seconds += min(time.monotonic() - started, LONGEST_STEP)
            if state.step % MEASURE_EVERY == 0:
                state.agreement = measure(state, plan, check, table)
            show(state, progress, value)
            if time.monotonic() - saved > 120 or stopped():
                _save(directory, plan, state)
                saved = time.monotonic()
            if stopped():
                raise KeyboardInterrupt(f"the checkpoint of step {state.step} is kept: the same command goes on there")
    state.agreement = measure(state, plan, check, table)
    _save(directory, plan, state)
    return state


def measure(state: Trained, plan: Plan, check: Windows, table: torch.Tensor) -> tuple[float, ...]:
    """Greedy agreement per step over the drafter's whole vocabulary."""
    state.network.eval()
    with torch.no_grad(), _arithmetic(plan):
        states = objective.unrolled(state.network, check.features, table[check.tokens], plan.steps)
        head = table[torch.from_numpy(state.vocabulary.astype(np.int64))]
        shares = objective.agreement(states, check.features, head, state.network.get_buffer("scale"), check.valid)
    state.network.train()
    return tuple(shares)


def _step(state: Trained, plan: Plan, progress: float, batch: Windows, table: torch.Tensor) -> float:
    source = np.random.default_rng([plan.seed, 1, state.step])
    torch.manual_seed(int(source.integers(2**62)))  # of the dropout, so that a resumed training has the same
    acceptance = progress >= 1 - plan.acceptance
    chosen = candidates(batch.tokens.numpy(), state.vocabulary, plan.candidates, source)
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate * _rate(progress, plan.warmup)
    with _arithmetic(plan):
        states = objective.unrolled(state.network, batch.features, table[batch.tokens], plan.steps)
        scale = state.network.get_buffer("scale")
        value = objective.loss(states, batch.features, table[torch.from_numpy(chosen)], scale, batch.valid, acceptance)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    return float(value.detach())


def _rate(progress: float, warmup: float) -> float:
    """Share of the full learning rate: linear warm-up, then half a cosine down to 2 %."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _progress(plan: Plan, state: Trained) -> float:
    if plan.total_steps is not None:
        return state.step / plan.total_steps
    return state.seconds / (60 * (plan.minutes or 1))


def _arithmetic(plan: Plan) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16)


def _begin(plan: Plan, answers: Answers, table: torch.Tensor, end_ids: tuple[int, ...]) -> Trained:
    torch.manual_seed(plan.seed)
    network = Network(Shape(table.shape[1], plan.inner), plan.dropout)
    sample = torch.from_numpy(answers.features[:: max(1, len(answers.features) // 20000)].astype(np.float32))
    network.get_buffer("scale").copy_(sample.pow(2).mean(0).sqrt().clamp_min(1e-3))
    with torch.no_grad():
        # Embeddings have features of very different size as well; the norm's weights start by evening them out.
        spread = table.std(0)
        network.token_norm.copy_(spread.mean() / spread)
        for block in network.blocks:
            block.down.weight.zero_()
        _regress(network, answers, table)
    vocabulary = most_frequent(answers.tokens, plan.vocabulary, len(table), end_ids)
    return Trained(network, _optimizer(network, plan), vocabulary)


def _regress(network: Network, answers: Answers, table: torch.Tensor) -> None:
    """Let the linear part predict the next features as well as it can: a start that costs seconds, not minutes."""
    owner = np.repeat(np.arange(len(answers)), np.diff(answers.starts))
    places = np.flatnonzero(owner[:-1] == owner[1:])
    places = places[:: max(1, len(places) // REGRESSED)]
    now, after = (
        network.start(torch.from_numpy(answers.features[at].astype(np.float32))) for at in (places, places + 1)
    )
    x = network.inputs(now, table[torch.from_numpy(answers.tokens[places].astype(np.int64))])
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    network.linear.weight.copy_(torch.linalg.solve(gram, x.T @ (after - now)).T)


def _optimizer(network: Network, plan: Plan) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)


def _resume(directory: Path, plan: Plan, hidden: int) -> Trained | None:
    path = directory / CHECKPOINT
    if not path.is_file():
        return None
    stored = torch.load(path, weights_only=True)
    if stored["plan"] != plan.key():
        raise BuildError(f"{path} belongs to a training with other settings: use another --work directory or remove it")
    network = Network(Shape(hidden, plan.inner), plan.dropout)
    network.load_state_dict(stored["network"])
    optimizer = _optimizer(network, plan)
    optimizer.load_state_dict(stored["optimizer"])
    console.print(f"    going on from step {stored['step']}")
    return Trained(
        network, optimizer, stored["vocabulary"].numpy(), stored["step"], stored["seconds"],
        tuple(stored["agreement"]),
    )  # fmt: skip


def _save(directory: Path, plan: Plan, state: Trained) -> None:
    partial = directory / f".{CHECKPOINT}.partial-{os.getpid()}"
    torch.save(
        {
            "plan": plan.key(),
            "network": state.network.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "vocabulary": torch.from_numpy(state.vocabulary),
            "step": state.step,
            "seconds": state.seconds,
            "agreement": list(state.agreement),
        },
        partial,
    )
    partial.replace(directory / CHECKPOINT)


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

        def show(state: Trained, progress: float, value: float) -> None:
            smooth.append(value)
            recent = sum(smooth[-50:]) / len(smooth[-50:])
            shares = " ".join(f"{share:.3f}" for share in state.agreement)
            text = f"step {state.step}  loss {recent:.3f}  held-out agreement {shares}"
            bar.update(task, completed=progress, description=text)
            if not console.is_terminal and state.step % MEASURE_EVERY == 0:
                console.print(f"    {progress:4.0%}  {text}  {state.seconds:.0f} s")

        yield show
