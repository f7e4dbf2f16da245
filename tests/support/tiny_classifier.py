"""A small ResNet with random weights, as a Hugging Face directory: enough to test how classifiers are built."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from build_engines.vision import huggingface
from build_engines.vision.checkpoint import Images, Origin
from tandem.vision.preprocess import ImageRule

SIZE = 32


def write(directory: Path, seed: int = 3) -> Path:
    """Write the checkpoint to `directory` and return it."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(seed)
    names = {0: "ant", 1: "bee", 2: "cat", 3: "dog"}
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    network = ResNetForImageClassification(config).train()
    with torch.no_grad():  # statistics of batch normalization that are not 0 and 1
        for _ in range(20):
            network(torch.randn(16, 3, SIZE, SIZE))
    network.eval().save_pretrained(directory)
    processor = {
        "do_resize": True, "size": {"shortest_edge": 36}, "resample": 3, "do_center_crop": True, "crop_size": SIZE,
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.5, 0.2], "rescale_factor": 1 / 255,
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def origin(directory: Path) -> Origin:
    """The checkpoint as builds take it, calibrated with smooth noise."""
    return huggingface.origin(str(directory), pictures)


def pictures(rule: ImageRule, count: int = 24) -> Images:
    """uint8 [count, size, size, 3]."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(rule.size // 8, 1).repeat(rule.size // 8, 2))
