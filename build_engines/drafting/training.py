"""Train a drafter on the target's answers; what was done can be interrupted at any step, and goes on from there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from build_engines.drafting import loop, objective
from build_engines.drafting.network import Network, Shape
from build_engines.drafting.shards import Answers
from build_engines.drafting.vocabulary import candidates, most_frequent
from build_engines.drafting.windows import Sampler, Windows
from build_engines.progress import console

MEASURED_WINDOWS = 48
REGRESSED, RIDGE = 80_000, 0.01  # tokens, and the share of their mean variance that is added


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
    console.print(f"    {state.network.parameter_count / 1e6:.2f} M weights, {len(answers.tokens)} tokens of answers")
    loop.run(
        state,
        plan,
        lambda progress: _step(state, plan, progress, sampler.batch(state.step), table),
        lambda: measure(state, plan, check, table),
        lambda: _save(directory, plan, state),
    )
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
        group["lr"] = plan.rate * loop.rate(progress, plan.warmup)
    with _arithmetic(plan):
        states = objective.unrolled(state.network, batch.features, table[batch.tokens], plan.steps)
        scale = state.network.get_buffer("scale")
        value = objective.loss(states, batch.features, table[torch.from_numpy(chosen)], scale, batch.valid, acceptance)
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimizer.step()
    return float(value.detach())


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
    return loop.optimizer(list(network.parameters()), plan.rate, plan.weight_decay)


def _resume(directory: Path, plan: Plan, hidden: int) -> Trained | None:
    stored = loop.read_checkpoint(directory, plan.key())
    if stored is None:
        return None
    network = Network(Shape(hidden, plan.inner), plan.dropout)
    network.load_state_dict(stored["network"])
    optimizer = _optimizer(network, plan)
    optimizer.load_state_dict(stored["optimizer"])
    return Trained(
        network, optimizer, stored["vocabulary"].numpy(), stored["step"], stored["seconds"],
        tuple(stored["agreement"]),
    )  # fmt: skip


def _save(directory: Path, plan: Plan, state: Trained) -> None:
    loop.write_checkpoint(
        directory, plan.key(), state,
        network=state.network.state_dict(), optimizer=state.optimizer.state_dict(),
        vocabulary=torch.from_numpy(state.vocabulary),
    )  # fmt: skip
