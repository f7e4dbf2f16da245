"""What a causal language model computes, as far as the supported architectures differ: read off a torch model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from build_engines.errors import BuildError

EXPRESSIBLE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_ROPE_OF_LENGTH = ("dynamic", "longrope")  # their frequencies depend on the length of the text
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary position embedding of one kind of layer: cos and sin, float32 [positions, head_dim / 2]."""

    cos: Floats
    sin: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    kind: str  # `full_attention` or `sliding_attention`
    window: int | None  # positions that a token sees, itself included; None: all before it


class Architecture:
    """Shapes, options and weights of one model; raises `BuildError` for what the ONNX contract cannot express."""

    def __init__(self, model: Any, positions: int) -> None:
        """`model`: a `transformers` causal language model in float32; `positions`: of the rotary tables."""
        config = model.config
        self.model_type: str = config.model_type
        cap = getattr(config, "attn_logit_softcapping", None)
        if cap is not None:
            raise BuildError(
                f"{self.model_type}: its attention scores are capped (attn_logit_softcapping {cap}), which TensorRT's "
                "attention cannot do, so the ONNX contract has no cap: build it with --runtime openvino"
            )
        if self.model_type not in EXPRESSIBLE:
            raise BuildError(
                f"{self.model_type} has no ONNX export; choose --runtime openvino. There is one for: "
                f"{', '.join(EXPRESSIBLE)}"
            )
        self.hidden: int = config.hidden_size
        self.vocab: int = config.vocab_size
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.epsilon: float = config.rms_norm_eps
        self.is_gemma = self.model_type.startswith("gemma")
        self.scale = float(getattr(config, "query_pre_attn_scalar", None) or self.head_dim) ** -0.5
        self.embedding_scale = self.hidden**0.5 if self.is_gemma else 1.0
        name = getattr(config, "hidden_activation", None) or config.hidden_act
        if name not in _ACTIVATIONS:
            raise BuildError(f"activation {name} has no ONNX export; known: {', '.join(_ACTIVATIONS)}")
        self.activation = _ACTIVATIONS[name]
        self.layers = _layers(config)
        self._weights = {key: value for key, value in model.state_dict().items() if not key.startswith("lm_head")}
        self._head = model.lm_head.weight.detach()
        self.rotaries = {layer.kind: _rotary(model, layer.kind, positions) for layer in self.layers}

    def has(self, name: str) -> bool:
        return f"model.{name}" in self._weights

    def weight(self, name: str) -> Floats:
        """A weight by its name below `model.`; those of norms ready to be multiplied with."""
        value: Floats = self._weights[f"model.{name}"].float().numpy()
        # Gemma stores what is added to 1.
        return value + 1 if self.is_gemma and name.split(".")[-2].endswith("norm") else value

    def linear(self, *names: str) -> tuple[Floats, Floats | None]:
        """Layers that read the same input, as one: weight [in, sum of out] and bias, if they have one."""
        weight = np.concatenate([self.weight(f"{name}.weight") for name in names]).T
        if not self.has(f"{names[0]}.bias"):
            return weight, None
        return weight, np.concatenate([self.weight(f"{name}.bias") for name in names])

    @property
    def embedding(self) -> Floats:
        """[vocab, hidden], scaled."""
        return self.weight("embed_tokens.weight") * np.float32(self.embedding_scale)

    @property
    def head(self) -> Floats:
        """[hidden, vocab]."""
        value: Floats = self._head.float().numpy().T
        return value


def _layers(config: Any) -> list[Layer]:
    count, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral: all layers alike
        kinds = ["sliding_attention" if window else "full_attention"] * count
    return [Layer(kind, window if kind == "sliding_attention" else None) for kind in kinds]


def _rotary(model: Any, kind: str, positions: int) -> Rotary:
    """As the torch module computes it, so that scaled frequencies need no second implementation."""
    import torch

    module = model.model.rotary_emb
    settings = model.config.rope_parameters
    settings = settings.get(kind, settings)
    if settings.get("rope_type") in _ROPE_OF_LENGTH:
        raise BuildError(
            f"rope_type {settings['rope_type']} depends on the length of the text, which the ONNX contract cannot "
            "express: build it with --runtime openvino"
        )
    places = torch.arange(positions)[None]
    by_kind = {"layer_type": kind} if kind in model.config.rope_parameters else {}
    with torch.inference_mode():
        cos, sin = module(torch.zeros(1), places, **by_kind)
    half = cos.shape[-1] // 2  # both halves are alike
    return Rotary(cos[0, :, :half].float().numpy(), sin[0, :, :half].float().numpy())
