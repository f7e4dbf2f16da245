"""How engines are made of a classifier: one entry for each way, and nothing else to change to add one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.vision.checkpoint import Checkpoint, Images

LEAST_AGREEMENT = 0.75  # of an engine with full precision on a few pictures; below, a build fails


@dataclass(frozen=True, slots=True)
class Material:
    """What a maker works on."""

    checkpoint: Callable[[], Checkpoint]
    graph: Path
    """The fp32 ONNX graph."""
    calibration: Callable[[], Images]
    sensitive: list[str]
    """For mixed recipes: names of the graph's nodes that stay in full precision when the rest is quantized."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make an engine."""

    name: str
    precision: str
    runtime: str
    """Python distribution that runs the engine."""
    maker: str
    """`module:function` of (material, directory) to the name of the file that the runtime loads."""
    text: str
    """For people, one line."""
    tools: tuple[str, ...] = ()
    """Distributions besides the runtime that shape the engine; their versions are in the build key."""
    quantized: bool = False
    mixed: bool = False
    """Quantized, except for the layers that lose too much by it: `build_engines.vision.sensitivity`."""
    gpu: bool = False
    """Made for a GPU: it does not run here."""

    def make(self, material: Material, directory: Path) -> str:
        """Write the engine's files to `directory`; the name of the one to load."""
        module, function = self.maker.split(":")
        result: Any = getattr(importlib.import_module(f"build_engines.vision.{module}"), function)(material, directory)
        return str(result)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("torch-fp32", "fp32", "torch", "torch_engine:fp32", "PyTorch as it comes: where everybody starts"),
        Recipe("torch-int8-dynamic", "int8", "torch", "torch_engine:int8_dynamic",
               "PyTorch's dynamic quantization: linear layers only", quantized=True),
        Recipe("openvino-fp32", "fp32", "openvino", "openvino_engine:fp32", "full precision"),
        Recipe("openvino-bf16", "bf16", "openvino", "openvino_engine:bf16",
               "weights in 16 bits, arithmetic in bfloat16 where the processor has it"),
        Recipe("openvino-int8", "int8", "openvino", "openvino_engine:int8",
               "post-training quantization of weights and activations by NNCF", ("nncf",), True, mixed=True),
        Recipe("onnxruntime-fp32", "fp32", "onnxruntime", "onnxruntime_engine:fp32", "full precision"),
        Recipe("onnxruntime-int8", "int8", "onnxruntime", "onnxruntime_engine:int8",
               "static quantization with Q/DQ pairs by ONNX Runtime", quantized=True, mixed=True),
        Recipe("onnxruntime-modelopt", "int8", "onnxruntime", "modelopt_engine:int8",
               "static quantization with Q/DQ pairs by NVIDIA's ModelOpt", ("nvidia-modelopt",), True, mixed=True),
        Recipe("litert-fp32", "fp32", "ai-edge-litert", "litert_engine:fp32",
               "LiteRT (TensorFlow Lite), for phones and boards: full precision"),
        Recipe("litert-int8", "int8", "ai-edge-litert", "litert_engine:int8",
               "LiteRT with static quantization of weights and activations", ("ai-edge-quantizer",), True),
        Recipe("tensorrt-fp16", "fp16", "tensorrt", "tensorrt_engine:fp16",
               "for an NVIDIA GPU: a strongly typed FP16 graph", ("onnxruntime",), gpu=True),
        Recipe("tensorrt-int8", "int8", "tensorrt", "tensorrt_engine:int8",
               "for an NVIDIA GPU: explicit INT8 Q/DQ pairs, the rest in FP16", ("onnxruntime",), True, mixed=True,
               gpu=True),
        Recipe("tensorrt-modelopt", "int8", "tensorrt", "modelopt_engine:int8_tensorrt",
               "the same with the pairs of NVIDIA's ModelOpt", ("nvidia-modelopt",), True, mixed=True, gpu=True),
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """Raises `BuildError` with the list of all if there is none of that name."""
    if name not in RECIPES:
        raise BuildError(f"there is no recipe {name}. Choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]
