"""A ResNet-50 that reads digits, trained in minutes on two cores: no ImageNet weights of it can be had offline.

What makes it cheap: most of the training sees the digits at half their size, and has only the first block of each
stage. The blocks that refine start as the identity (zero-initialized residual branches: He et al., 2019,
arXiv:1812.01187), so they can join at the end. The last parts, at the size that is served, fit the network and the
statistics of its batch normalization to it (Touvron et al., 2019, arXiv:1906.06423).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from build_engines.errors import BuildError
from build_engines.output_directory import exclusive
from build_engines.progress import console, counted, quiet, silence_libraries
from build_engines.vision import digits
from tandem.vision.preprocess import ImageRule

CACHE = Path(".cache/models")
STD = 78.6  # of MNIST's pixels; their mean is left alone, so that black stays zero and padding looks like paper
CHECKED = 300  # held-out digits that a training is judged by


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the training."""

    whole: bool  # all blocks, or the first of each stage
    size: int  # pixels of the pictures
    steps: int
    rate: float  # the highest of the one cycle of learning rates


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that shapes the weights, besides the data."""

    seed: int = 7
    parts: tuple[Part, ...] = (Part(False, 32, 500, 2e-3), Part(False, 64, 120, 1e-3), Part(True, 64, 60, 5e-4))
    batch: int = 64
    least_accuracy: float = 0.9  # on `CHECKED` held-out digits; below, the training went wrong

    @property
    def key(self) -> str:
        """Hash over plan and data: equal keys mean equal training."""
        shaping = {name: value for name, value in dataclasses.asdict(self).items() if name != "least_accuracy"}
        parts = {**shaping, "data": digits.DATA.sha256, "size": digits.RULE.size, "version": 2}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def trained(plan: Plan, cache: Path | None = None) -> Path:
    """A Hugging Face directory with the trained network; trained if it is not in `cache`, which takes minutes.

    Raises:
        BuildError: the digits cannot be had, or the result reads them badly.
    """
    target = (cache or CACHE) / f"resnet50-digits-{plan.key[:12]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.parent):  # nobody trains what somebody else is training
        if not target.is_dir():
            _train_into(target, plan)
    return target


def _train_into(target: Path, plan: Plan) -> None:
    silence_libraries()
    network, accuracy = train(plan)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with quiet():
            network.save_pretrained(partial)
        (partial / "preprocessor_config.json").write_text(json.dumps(_preprocessor(digits.RULE), indent=2) + "\n")
        (partial / "accuracy.json").write_text(json.dumps({f"held_out_top1_of_{CHECKED}": accuracy}) + "\n")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"  [green]✓[/] {target.name}: {accuracy:.1%} of {CHECKED} held-out digits read rightly")


def train(plan: Plan) -> tuple[Any, float]:
    """The network, and the share of `CHECKED` held-out digits that it reads."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(plan.seed)
    names = {number: str(number) for number in range(10)}
    network = ResNetForImageClassification(ResNetConfig(id2label=names, label2id={v: k for k, v in names.items()}))
    network = network.to(memory_format=torch.channels_last)
    _zero_branches(network)
    generator = torch.Generator().manual_seed(plan.seed)
    stages = network.resnet.encoder.stages
    whole = [stage.layers for stage in stages]
    for part in plan.parts:
        for stage, blocks in zip(stages, whole, strict=True):
            stage.layers = blocks if part.whole else torch.nn.Sequential(blocks[0])
        _train(network, part, plan.batch, generator)
    network.eval()
    accuracy = _accuracy(network)
    if accuracy < plan.least_accuracy:
        raise BuildError(
            f"the trained ResNet-50 reads only {accuracy:.0%} of held-out digits; this is a bug, report it"
        )
    return network, accuracy


def _zero_branches(network: Any) -> None:
    import torch

    for module in network.modules():
        if type(module).__name__ == "ResNetBottleNeckLayer":
            torch.nn.init.zeros_(module.layer[-1].normalization.weight)


def _train(network: Any, part: Part, batch: int, generator: Any) -> None:
    import torch

    images, classes = digits.training()
    inputs, labels = _inputs(images, part.size), torch.from_numpy(classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=part.rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, part.rate, total_steps=part.steps, pct_start=0.2)
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    blocks = "all blocks" if part.whole else "first blocks"
    with counted(f"training ResNet-50 on digits of {part.size} pixels, {blocks}", part.steps) as advance:
        for _ in range(part.steps):
            if len(order) < batch:
                order = torch.randperm(len(labels), generator=generator)
            chosen, order = order[:batch], order[batch:]
            logits = network(_shifted(inputs[chosen], part.size // 16, generator)).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance(1)


def _inputs(images: Any, size: int) -> Any:
    """float32 [N, 3, size, size] as the network gets them."""
    import torch

    made = digits.pictures(images, ImageRule(size, size, background=(0, 0, 0)))
    return torch.from_numpy(np.ascontiguousarray(made.transpose(0, 3, 1, 2))).float() / STD


def _shifted(pictures: Any, most: int, generator: Any) -> Any:
    """Moved by up to `most` pixels each way; the margins are black."""
    import torch

    down, across = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return torch.roll(pictures, (down, across), (2, 3)).contiguous(memory_format=torch.channels_last)


def _accuracy(network: Any) -> float:
    import torch

    images, labels = digits.held_out(CHECKED)
    with torch.no_grad():
        found = [network(part).logits.argmax(1) for part in _inputs(images, digits.RULE.size).split(50)]
    return float((torch.cat(found).numpy() == labels).mean())


def _preprocessor(rule: ImageRule) -> dict[str, Any]:
    """The rule in the form of Hugging Face image processors."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": rule.shorter_side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": rule.size, "width": rule.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [STD / 255] * 3,
    }
