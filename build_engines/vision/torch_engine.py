"""Engines that PyTorch itself runs: where everybody starts, and what its own dynamic quantization makes of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from build_engines.progress import quiet
from build_engines.vision.onnx_graph import with_preprocessing
from build_engines.vision.recipes import Material

FILE = "model.pt"


def fp32(material: Material, directory: Path) -> str:
    """The network as it was trained, traced so that it loads without its source."""
    return _save(with_preprocessing(material.checkpoint()), material, directory)


def int8_dynamic(material: Material, directory: Path) -> str:
    """Weights of linear layers in INT8, activations quantized on the fly; convolutions have no such kernels."""
    import copy

    import torch

    module = copy.deepcopy(with_preprocessing(material.checkpoint()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, torch.qint8, inplace=True)
    return _save(module, material, directory)


def _save(module: Any, material: Material, directory: Path) -> str:
    import torch

    size = material.checkpoint().image.size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(module, example), directory / FILE)
    return FILE
