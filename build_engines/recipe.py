"""What an engine is made of, as far as the user chooses it, and the key that tells whether it must be built again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.smooth_quant import ALPHAS
from tandem.manifest import sha256_of_file

RUNTIMES = {  # and the precisions of weights that each is built with
    "openvino": ("fp32", "bf16", "int8", "int4"),
    "onnxruntime": ("fp32", "fp16", "int8", "w8a8", "int4"),
    "tensorrt": ("fp16", "int8", "w8a8", "int4"),
}
WEIGHTS = ("fp32", "fp16", "bf16", "int8", "w8a8", "int4")
ACTIVATIONS = ("f32", "bf16")
KV_CACHE = ("f32", "f16", "bf16", "u8")
GROUP_SIZES = (32, 64, 128)
# Of int4 weights: a number for each group, which says the group's minimum; a code like those of the weights; or none.
ZERO_POINTS = {"float": "min", "integer": "asym", "none": "sym"}

# Raise it when a change of this package changes the engines it writes.
BUILDER_VERSION = 1
CONTRACT_VERSION = 2  # the same for the ONNX export alone
_TOOLS = ("openvino", "nncf", "optimum-intel", "transformers", "torch")
_ONNX_TOOLS = ("onnx", "transformers", "torch")
_CALIBRATION_TOOL = "nvidia-modelopt"
_LENGTH_STEP = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """Precision of an engine: `weights` shape the files, the rest is what the runtime is told at load."""

    weights: str = "int8"
    group_size: int = 32
    """Weights that share one scale, for int4."""
    zero_points: str = "float"
    """Of int4 weights, one of `ZERO_POINTS`: see build_engines.int4_weights."""
    activations: str = "f32"
    kv_cache: str = "f16"
    dynamic_quantization_group: int = 64
    runtime: str = "openvino"
    length: int = 2048
    """Tokens of the longest text, where the KV cache has slots; OpenVINO's blocks need no bound."""
    stages: int = 1
    """Graphs that the layers are divided into, each for a device of its own; ONNX only."""
    calibration: Path | None = None
    """Text that w8a8 looks at its activations on; None: see build_engines.smooth_quant."""

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise BuildError(f"runtime {self.runtime} is not known; choose one of {', '.join(RUNTIMES)}")
        for value, known, what in (
            (self.weights, WEIGHTS if self.weights in WEIGHTS else RUNTIMES[self.runtime], "weights"),
            (self.activations, (*ACTIVATIONS, *(["f16"] if self.is_onnx else [])), "activations"),
            (self.kv_cache, KV_CACHE, "KV cache"),
        ):
            if value not in known:
                raise BuildError(f"precision {value} of the {what} is not known; choose one of {', '.join(known)}")
        if self.weights not in RUNTIMES[self.runtime]:
            raise BuildError(
                f"{self.weights} weights are not built for {self.runtime}; choose one of "
                f"{', '.join(RUNTIMES[self.runtime])}"
            )
        if self.length < _LENGTH_STEP or self.length % _LENGTH_STEP:
            raise BuildError(f"max length {self.length}: it must be a multiple of {_LENGTH_STEP}")
        if self.is_onnx and self.kv_cache not in ("f32", "f16"):
            raise BuildError(f"a KV cache in {self.kv_cache} is for openvino only; choose f32 or f16")
        if self.kv_cache == "bf16" and self.activations != "bf16":
            raise BuildError("a bf16 KV cache needs bf16 activations: the CPU runtime refuses it with f32")
        if self.zero_points not in ZERO_POINTS:
            raise BuildError(f"zero points {self.zero_points}: choose one of {', '.join(ZERO_POINTS)}")
        if self.is_onnx and self.weights == "int4" and self.zero_points != "float":
            raise BuildError(f"{self.zero_points} zero points are for openvino only; choose float")
        if self.group_size not in GROUP_SIZES:
            raise BuildError(f"group size {self.group_size}: choose one of {', '.join(map(str, GROUP_SIZES))}")
        if self.stages != 1 and not self.is_onnx:
            raise BuildError(f"{self.stages} stages: {self.runtime} engines have one")
        if self.calibration is not None and self.weights != "w8a8":
            raise BuildError(f"a calibration text is for w8a8; {self.weights} weights need none")
        if self.calibration is not None and not self.calibration.is_file():
            raise BuildError(f"calibration text {self.calibration} is no file")
        if self.dynamic_quantization_group < 0:
            raise BuildError(f"dynamic quantization group {self.dynamic_quantization_group}: it must not be negative")

    @property
    def is_onnx(self) -> bool:
        """Whether the engine is an ONNX graph with KV slots: see build_engines.language_contract."""
        return self.runtime != "openvino"

    @property
    def weights_label(self) -> str:
        """Name of the weight format, for example `int8` or `int4-asym-g64`."""
        if self.weights != "int4":
            return self.weights
        return f"int4-{ZERO_POINTS[self.zero_points]}-g{self.group_size}"

    def build_key(self, source_sha256: str) -> str:
        """Hash over everything that the engine's files depend on; run-time settings are not among them."""
        tools = {tool: metadata.version(tool) for tool in (_ONNX_TOOLS if self.is_onnx else _TOOLS)}
        parts = {"builder": BUILDER_VERSION, "source": source_sha256, "weights": self.weights_label, "tools": tools}
        if self.is_onnx:
            parts |= {
                "runtime": self.runtime,
                "length": self.length,
                "kv_cache": self.kv_cache,
                "contract": CONTRACT_VERSION,
            }
            if self.stages != 1:
                parts["stages"] = self.stages
        if self.weights == "w8a8":
            parts["calibration"] = sha256_of_file(self.calibration) if self.calibration else ""
            parts["calibration tool"] = metadata.version(_CALIBRATION_TOOL)
            parts["alphas"] = ALPHAS
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
