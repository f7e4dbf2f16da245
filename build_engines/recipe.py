"""What an engine is made of, as far as the user chooses it, and the key that tells whether it must be built again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata

from build_engines.errors import BuildError

WEIGHTS = ("fp32", "bf16", "int8", "int4")
ACTIVATIONS = ("f32", "bf16")
KV_CACHE = ("f32", "f16", "bf16", "u8")
GROUP_SIZES = (32, 64, 128)

# Raise it when a change of this package changes the engines it writes.
BUILDER_VERSION = 1
_TOOLS = ("openvino", "nncf", "optimum-intel", "transformers", "torch")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Precision of an engine: `weights` shape the files, the rest is what the runtime is told at load."""

    weights: str = "int8"
    group_size: int = 64
    """Weights that share one scale, for int4."""
    symmetric: bool = False
    """int4 without zero points: smaller and faster, less exact."""
    activations: str = "f32"
    kv_cache: str = "f16"
    dynamic_quantization_group: int = 64

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.weights, WEIGHTS, "weights"),
            (self.activations, ACTIVATIONS, "activations"),
            (self.kv_cache, KV_CACHE, "KV cache"),
        ):
            if value not in known:
                raise BuildError(f"precision {value} of the {what} is not known; choose one of {', '.join(known)}")
        if self.kv_cache == "bf16" and self.activations != "bf16":
            raise BuildError("a bf16 KV cache needs bf16 activations: the CPU runtime refuses it with f32")
        if self.group_size not in GROUP_SIZES:
            raise BuildError(f"group size {self.group_size}: choose one of {', '.join(map(str, GROUP_SIZES))}")
        if self.dynamic_quantization_group < 0:
            raise BuildError(f"dynamic quantization group {self.dynamic_quantization_group}: it must not be negative")

    @property
    def weights_label(self) -> str:
        """Name of the weight format, for example `int8` or `int4-asym-g64`."""
        if self.weights != "int4":
            return self.weights
        return f"int4-{'sym' if self.symmetric else 'asym'}-g{self.group_size}"

    def build_key(self, source_sha256: str) -> str:
        """Hash over everything that the engine's files depend on; run-time settings are not among them."""
        tools = {tool: metadata.version(tool) for tool in _TOOLS}
        parts = {"builder": BUILDER_VERSION, "source": source_sha256, "weights": self.weights_label, "tools": tools}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
