"""Checkpoint to ONNX: the one graph from which all engines are made.

Input `image`, UINT8 [N, size, size, 3]; output `logits`, FP32 [N, classes]. Normalization and layout are in the graph,
batch normalization is folded into the convolutions, and the graph answers as torch does or it is not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from build_engines.errors import BuildError
from build_engines.progress import quiet, silence_libraries, stage
from build_engines.vision.checkpoint import Checkpoint, Images, Origin
from tandem.vision.manifest import INPUT, OUTPUT

CACHE = Path(".cache/vision")
OPSET = 20  # Q/DQ with FP16 scales needs 19; what TensorRT, OpenVINO and ONNX Runtime all read
TOLERANCE = 1e-3  # of the largest logit: what two correct implementations in fp32 differ by at most
_VERSION = 2  # raise it when the graphs change
_TOOLS = ("torch", "transformers", "onnx", "onnxscript")


def graph_key(origin: Origin) -> str:
    """Hash over all that the graph depends on."""
    tools = {tool: metadata.version(tool) for tool in _TOOLS}
    parts = {"version": _VERSION, "source": origin.sha256, "opset": OPSET, "tools": tools}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def graph_of(origin: Origin, checkpoint: Checkpoint, cache: Path = CACHE) -> Path:
    """The path of the fp32 graph, exported if it is not in `cache`.

    Raises:
        BuildError: the network cannot be exported, or the graph does not answer as torch does.
    """
    target = cache / f"{origin.name}-{graph_key(origin)[:16]}.onnx"
    if target.is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with stage(f"exporting {origin.name} to ONNX"):
            export(checkpoint, partial)
            require_parity(checkpoint, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def export(checkpoint: Checkpoint, path: Path) -> None:
    """Write the graph, checked. Raises `BuildError` if torch or the checker refuses it."""
    import onnx
    import torch

    silence_libraries()
    size = checkpoint.image.size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                with_preprocessing(checkpoint), (example,), input_names=[INPUT], output_names=[OUTPUT],
                opset_version=OPSET, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )  # fmt: skip
            program.optimize()
            program.save(path, external_data=False)
            graph = onnx.load(path)
            onnx.checker.check_model(graph, full_check=True)
    except (RuntimeError, TypeError, ValueError, onnx.checker.ValidationError) as error:
        raise BuildError(f"{checkpoint.architecture} cannot be exported to ONNX: {_first_line(error)}") from error
    left = sorted({node.op_type for node in graph.graph.node} & {"BatchNormalization", "Identity", "Dropout"})
    if left:
        raise BuildError(f"{checkpoint.architecture}: the exported graph still has {', '.join(left)}")


def require_parity(checkpoint: Checkpoint, path: Path, images: Images | None = None) -> float:
    """How far graph and torch are apart, as a share of the largest logit, on `images` (default: noise).

    Raises:
        BuildError: further than `TOLERANCE`.
    """
    import onnxruntime as ort
    import torch

    if images is None:
        size = checkpoint.image.size
        images = np.random.default_rng(7).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = with_preprocessing(checkpoint)(torch.from_numpy(images)).numpy()
    (found,) = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run([OUTPUT], {INPUT: images})
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise BuildError(
            f"{checkpoint.architecture}: the ONNX graph answers otherwise than torch: logits differ by {error:.2g} of "
            f"the largest, at most {TOLERANCE:g} is allowed"
        )
    return error


def with_preprocessing(checkpoint: Checkpoint) -> Any:
    """torch.nn.Module: uint8 [N, size, size, 3] to logits float32 [N, classes]."""
    import torch

    class WithPreprocessing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = checkpoint.module
            self.register_buffer("mean", torch.tensor(checkpoint.mean).view(1, 3, 1, 1))
            self.register_buffer("factor", 1 / torch.tensor(checkpoint.std).view(1, 3, 1, 1))

        def forward(self, image: Any) -> Any:
            x = (image.float().permute(0, 3, 1, 2) - self.mean) * self.factor
            answer = self.network(x)
            return answer if isinstance(answer, torch.Tensor) else answer.logits

    _plain_pooling(checkpoint.module)
    return WithPreprocessing().eval()


def _plain_pooling(module: Any) -> None:
    """Global pooling as a plain mean: torch's adaptive one is exported with arithmetic on shapes."""
    import torch

    class GlobalMean(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean((2, 3), keepdim=True)

    for child in list(module.modules()):
        for name, part in list(child.named_children()):
            if isinstance(part, torch.nn.AdaptiveAvgPool2d) and part.output_size in (1, (1, 1)):
                setattr(child, name, GlobalMean())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
