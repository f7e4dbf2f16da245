"""A shallow copy of a target that drafts for it: some of its layers, trained on its answers to do the work of all.

A way to a draft where a model has no small sibling. Layers are taken at even distances, the first and the last among
them; embedding, LM head and tokenizer stay the target's own. The loss is that of `objective`, after DistillSpec (Zhou
et al., 2024): first the distance to the target's distribution and features, then what is accepted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from build_engines.drafting import loop, objective
from build_engines.drafting.shards import Answers
from build_engines.drafting.vocabulary import candidates, most_frequent
from build_engines.errors import BuildError
from build_engines.progress import console
from build_engines.source import TEXT_FILES

MEASURED = 96  # answers


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """How to train. Equal plans, answers and `total_steps` give equal weights, interrupted or not."""

    layers: int = 2
    rows: int = 8  # answers in a step
    vocabulary: int = 16384  # tokens that candidates are drawn from
    candidates: int = 2048
    rate: float = 4e-4
    warmup: float = 0.03  # of the whole
    acceptance: float = 0.25  # of the whole, at its end, for which acceptance is maximized
    weight_decay: float = 0.05
    seed: int = 7
    total_steps: int | None = None
    minutes: float | None = None

    def key(self, checkpoint: str) -> str:
        """Hash over what the weights depend on, the target's checkpoint included."""
        text = json.dumps([dataclasses.asdict(self), checkpoint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Trained:
    """The state of a training run."""

    model: Any  # transformers' causal language model
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    agreement: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers behind their prompts, filled up on the right."""

    tokens: torch.Tensor  # int64 [rows, length]
    chosen: torch.Tensor  # bool [rows, length]: the next token belongs to the answer
    features: torch.Tensor  # float32 [chosen, hidden] what the target's LM head saw there
    answers: torch.Tensor  # int64 [chosen] the tokens that it chose there


class Batches:
    """Draws answers of like length; batch number n is a function of the answers, the seed and n."""

    def __init__(self, answers: Answers, seed: int, rows: int) -> None:
        self._answers, self._seed, self._rows = answers, seed, min(rows, len(answers))
        self._prompt_starts = np.cumsum([0, *answers.prompt_lengths])
        self._by_length = np.argsort(answers.prompt_lengths + np.diff(answers.starts), kind="stable")

    def draw(self, number: int) -> Batch:
        source = np.random.default_rng([self._seed, number])
        first = int(source.integers(0, len(self._by_length) - self._rows + 1))
        return self.cut(self._by_length[first : first + self._rows])

    def cut(self, chosen: npt.NDArray[np.int_]) -> Batch:
        """The answers of these numbers."""
        given = self._answers
        spans = [(int(given.starts[one]), int(given.starts[one + 1])) for one in chosen]
        prompts = [given.prompts[self._prompt_starts[one] : self._prompt_starts[one + 1]] for one in chosen]
        length = max(len(prompt) + end - start - 1 for prompt, (start, end) in zip(prompts, spans, strict=True))
        tokens = np.zeros((len(chosen), length), np.int64)
        places = np.zeros((len(chosen), length), np.bool_)
        for row, (prompt, (start, end)) in enumerate(zip(prompts, spans, strict=True)):
            whole = np.concatenate([prompt, given.tokens[start : end - 1]])
            tokens[row, : len(whole)] = whole
            places[row, len(prompt) - 1 : len(whole)] = True
        features = np.concatenate([given.features[start:end] for start, end in spans]).astype(np.float32)
        answers = np.concatenate([given.tokens[start:end] for start, end in spans]).astype(np.int64)
        return Batch(*(torch.from_numpy(one) for one in (tokens, places, features, answers)))


def train(
    directory: Path, plan: StudentPlan, answers: Answers, held_out: Answers, checkpoint: Path, end_ids: tuple[int, ...]
) -> Trained:
    """Start, or go on from what is kept in `directory`, until the plan is done.

    Args:
        checkpoint: the target, a Hugging Face directory; `answers` are its own.

    Raises:
        BuildError: it has fewer layers than wanted, or the kept state belongs to another plan.
        KeyboardInterrupt: after a signal; the state is kept.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = _begin(checkpoint, plan)
    key = plan.key(str(checkpoint.resolve()))
    if stored := loop.read_checkpoint(directory, key):
        state.model.load_state_dict(stored["weights"], strict=False)
        state.optimizer.load_state_dict(stored["optimizer"])
        state.step, state.seconds, state.agreement = stored["step"], stored["seconds"], tuple(stored["agreement"])
    head = state.model.get_output_embeddings().weight
    by_frequency = most_frequent(answers.tokens, min(plan.vocabulary, len(head)), len(head), end_ids)
    batches = Batches(answers, plan.seed, plan.rows)
    check = Batches(held_out, plan.seed, MEASURED)
    trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
    weights = sum(parameter.numel() for parameter in trained)
    console.print(f"    {weights / 1e6:.2f} M weights to train, {len(answers.tokens)} tokens of answers")
    scale = _scale(answers)
    loop.run(
        state,
        plan,
        lambda progress: _step(state, plan, progress, batches.draw(state.step), by_frequency, scale),
        lambda: (agreement(state.model, check, len(held_out)),),
        lambda: loop.write_checkpoint(
            directory, key, state, weights=_trainable(state.model), optimizer=state.optimizer.state_dict()
        ),
    )
    return state


def save(directory: Path, model: Any, checkpoint: Path) -> None:
    """Write the student as a Hugging Face directory, with the target's tokenizer; in fp16."""
    directory.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(directory)
    for name in TEXT_FILES:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, directory)


@torch.no_grad()
def agreement(model: Any, batches: Batches, count: int) -> float:
    """Share of the answers' tokens that are the student's most likely ones, on up to `MEASURED` answers."""
    head = model.get_output_embeddings().weight
    right = total = 0
    for first in range(0, min(count, MEASURED), 8):
        batch = batches.cut(np.arange(first, min(first + 8, count)))
        hidden = _hidden(model, batch)
        target = (batch.features @ head.T).argmax(-1)
        right += int(((hidden @ head.T).argmax(-1) == target).sum())
        total += len(target)
    return right / total


def _begin(checkpoint: Path, plan: StudentPlan) -> Trained:
    from transformers import AutoModelForCausalLM

    from build_engines.export import load_model
    from build_engines.recipe import Recipe

    torch.manual_seed(plan.seed)
    target = load_model(checkpoint, Recipe(weights="fp32"))
    depth = target.config.num_hidden_layers
    if not 1 <= plan.layers < depth:
        raise BuildError(
            f"a student of {plan.layers} layers: the target has {depth}, and it must have fewer, at least 1"
        )
    kept = np.linspace(depth - 1 if plan.layers == 1 else 0, depth - 1, plan.layers).round().astype(int).tolist()
    config = type(target.config).from_dict(target.config.to_dict())
    config.num_hidden_layers = plan.layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    weights = target.state_dict()
    model.load_state_dict({name: weights[_in_target(name, kept)] for name in model.state_dict()})
    model.requires_grad_(False)
    for part in (model.model.layers, model.model.norm):
        part.requires_grad_(True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Trained(model.train(), loop.optimizer(parameters, plan.rate, plan.weight_decay))


def _in_target(name: str, kept: list[int]) -> str:
    head, mark, rest = name.partition(".layers.")
    if not mark:
        return name
    layer, _, tail = rest.partition(".")
    return f"{head}{mark}{kept[int(layer)]}.{tail}"


def _trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _scale(answers: Answers) -> torch.Tensor:
    sample = torch.from_numpy(answers.features[:: max(1, len(answers.features) // 20000)].astype(np.float32))
    return sample.pow(2).mean(0).sqrt().clamp_min(1e-3)


def _hidden(model: Any, batch: Batch) -> torch.Tensor:
    """What the student's LM head sees where the answers' tokens are chosen, [chosen, hidden]."""
    hidden: torch.Tensor = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state[batch.chosen]
    return hidden


def _step(
    state: Trained, plan: StudentPlan, progress: float, batch: Batch, by_frequency: npt.NDArray[np.int32],
    scale: torch.Tensor,
) -> float:  # fmt: skip
    source = np.random.default_rng([plan.seed, 1, state.step])
    acceptance = progress >= 1 - plan.acceptance
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate * loop.rate(progress, plan.warmup)
    chosen = candidates(batch.answers.numpy(), by_frequency, plan.candidates, source)
    head = state.model.get_output_embeddings().weight[torch.from_numpy(chosen)]
    hidden = _hidden(state.model, batch)
    each = objective.distance(F.linear(hidden, head), F.linear(batch.features, head), acceptance)
    if not acceptance:
        each = each + objective.REGRESSION * objective.feature_distance(hidden / scale, batch.features / scale)
    value = each.mean()
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_([p for p in state.model.parameters() if p.requires_grad], 1.0)
    state.optimizer.step()
    return float(value.detach())
