"""A ResNet-50 that reads digits, trained in minutes on two cores: no ImageNet weights of it can be had offline.

What makes it cheap: a digit covers one cell of the network's last map, so that cell alone is trained first; the blocks
that only refine start as the identity (zero-initialized residual branches: He et al., 2019, arXiv:1812.01187) and join
when the others have learnt; a short part on pages of 3 x 3 cells teaches the surroundings; and the head of the page of
7 x 7 cells follows from that of 3 x 3 by arithmetic, because the cells further out are the same on every page.
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
CHECKED = 104  # held-out digits that a training is judged by
_CELL = 32  # pixels of the picture that one cell of the last map stands for


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that shapes the weights, besides the data."""

    seed: int = 7
    first_epochs: int = 3  # with the first block of each stage
    full_images: int = 2048  # with all blocks
    rate: float = 1e-3
    batch: int = 64
    page_images: int = 320  # on pages of 3 x 3 cells
    page_rate: float = 3e-4
    page_batch: int = 16
    settle_images: int = 256  # whose means and variances batch normalization keeps
    fit_images: int = 1280  # to which the head is fitted at the end
    head_images: int = 8  # that tell what the outer cells of a full page are
    least_accuracy: float = 0.8  # on `CHECKED` held-out pages; below, the training went wrong

    @property
    def key(self) -> str:
        """Hash over plan and data: equal keys mean equal training."""
        shaping = {name: value for name, value in dataclasses.asdict(self).items() if name != "least_accuracy"}
        parts = {**shaping, "data": digits.DATA.sha256, "digit": digits.DIGIT, "version": 1}
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
    """The network, on pages of the full size, and the share of `CHECKED` held-out digits that it reads."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(plan.seed)
    names = {number: str(number) for number in range(10)}
    network = ResNetForImageClassification(ResNetConfig(id2label=names, label2id={v: k for k, v in names.items()}))
    network = network.to(memory_format=torch.channels_last)
    _zero_branches(network)
    images, labels = digits.training()
    data = _Pages(digits.pages(images, ImageRule(digits.DIGIT, digits.DIGIT, background=(0, 0, 0))), labels, plan.seed)
    stages = network.resnet.encoder.stages
    whole = [stage.layers for stage in stages]
    for stage, blocks in zip(stages, whole, strict=True):
        stage.layers = torch.nn.Sequential(blocks[0])
    _epochs("training ResNet-50 on digits, first blocks", network, data, plan.first_epochs, plan.batch, plan.rate)
    for stage, blocks in zip(stages, whole, strict=True):
        stage.layers = blocks
    _epochs("training, all blocks", network, data, 1, plan.batch, plan.rate / 3, 1, plan.full_images)
    _epochs("training, surroundings", network, data, 1, plan.page_batch, plan.page_rate, 3, plan.page_images)
    _settle(network, data, 3, plan.settle_images)
    _fit_head(network, data, plan.fit_images)
    with counted("training, full pages", plan.head_images + CHECKED) as advance:
        _widen_head(network, data, plan.head_images)
        advance(plan.head_images)
        accuracy = _accuracy(network, advance)
    if accuracy < plan.least_accuracy:
        raise BuildError(
            f"the trained ResNet-50 reads only {accuracy:.0%} of held-out digits; this is a bug, report it"
        )
    return network.eval(), accuracy


class _Pages:
    """Digits as inputs of the network, on pages of some cells a side."""

    def __init__(self, images: Any, labels: Any, seed: int) -> None:
        import torch

        self.images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / STD
        self.labels = torch.from_numpy(labels)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, indices: Any, cells: int, shift: int = 0) -> Any:
        """float32 [N, 3, 32 * cells, 32 * cells], digits in the middle, moved by up to `shift` pixels."""
        import torch

        margin = _CELL * (cells // 2)
        page = torch.nn.functional.pad(self.images[indices], (margin,) * 4)
        if shift:
            down, across = torch.randint(-shift, shift + 1, (2,), generator=self.generator).tolist()
            page = torch.roll(page, (down, across), (2, 3))
        return page.contiguous(memory_format=torch.channels_last)


def _epochs(
    text: str,
    network: Any,
    data: _Pages,
    epochs: int,
    batch: int,
    rate: float,
    cells: int = 1,
    limit: int | None = None,
) -> None:
    import torch

    count = min(limit or len(data.labels), len(data.labels)) // batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * count, pct_start=0.2)
    network.train()
    with counted(text, epochs * count) as advance:
        for _ in range(epochs):
            order = torch.randperm(len(data.labels), generator=data.generator)
            for index in range(count):
                chosen = order[index * batch : (index + 1) * batch]
                logits = network(data.batch(chosen, cells, shift=2)).logits
                loss = torch.nn.functional.cross_entropy(logits, data.labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)


def _settle(network: Any, data: _Pages, cells: int, count: int) -> None:
    """Means and variances of batch normalization anew, by the final weights: the running ones lag behind them."""
    import torch

    layers = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
    network.train()
    with torch.no_grad(), counted("training, statistics", count) as advance:
        for part in torch.arange(count).split(32):
            network(data.batch(part, cells))
            advance(len(part))
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum


def _zero_branches(network: Any) -> None:
    import torch

    for module in network.modules():
        if type(module).__name__ == "ResNetBottleNeckLayer":
            torch.nn.init.zeros_(module.layer[-1].normalization.weight)


def _fit_head(network: Any, data: _Pages, count: int) -> None:
    """The best linear head for the network's features of pages of 3 x 3 cells."""
    import torch
    from sklearn.linear_model import LogisticRegression

    network.eval()
    features = []
    with torch.no_grad(), counted("training, head", count) as advance:
        for part in torch.arange(count).split(32):
            features.append(network.resnet(data.batch(part, 3, shift=1)).pooler_output.flatten(1))
            advance(len(part))
    table = torch.cat(features).double()
    mean, spread = table.mean(0), table.std(0) + 1e-6
    fitted = LogisticRegression(C=0.01, max_iter=500).fit(
        ((table - mean) / spread).numpy(), data.labels[:count].numpy()
    )
    weight = torch.from_numpy(fitted.coef_) / spread
    head = network.classifier[-1]
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.from_numpy(fitted.intercept_) - weight @ mean)


def _widen_head(network: Any, data: _Pages, count: int) -> None:
    """Fit the head, trained on the mean over 3 x 3 cells, to the mean over 7 x 7.

    The sum over a full page is the sum over its middle 3 x 3 cells and a rest that is the same for every digit.
    """
    import torch

    network.eval()
    cells = digits.RULE.size // _CELL
    with torch.no_grad():
        indices = torch.arange(count)
        small = network.resnet(data.batch(indices, 3)).pooler_output.flatten(1) * 9
        parts = [network.resnet(data.batch(part, cells)).pooler_output.flatten(1) for part in indices.split(8)]
        rest = (torch.cat(parts) * cells**2 - small).mean(0)
        head = network.classifier[-1]
        head.bias -= head.weight @ rest / 9
        head.weight *= cells**2 / 9


def _accuracy(network: Any, advance: Any) -> float:
    import torch

    images, labels = digits.held_out(CHECKED)
    right = 0
    with torch.no_grad():
        for start in range(0, len(labels), 8):
            page = digits.pages(images[start : start + 8])
            found = network(torch.from_numpy(page.transpose(0, 3, 1, 2).astype(np.float32) / STD)).logits.argmax(1)
            right += int((found.numpy() == labels[start : start + 8]).sum())
            advance(8)
    return right / len(labels)


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
