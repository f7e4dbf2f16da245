"""The ONNX contract of language models, and its export: what runs on ONNX Runtime and compiles in TensorRT.

One run is one step of a batch of rows. A row is a sequence: it has a slot of the KV cache, and 1 to m new tokens. The
new tokens of all rows lie one behind the other, so that only attention, which works on rows of equal length, sees any
padding. T tokens, B rows of at most m tokens, W wanted rows of logits; S positions in a slot, which never change.

Inputs, int64 unless said otherwise:
    tokens [T]          token ids
    positions [T]       place of each in its sequence
    unpack [B, m]       which of the T tokens each place of a row has; of places behind a row's last token, any
    pack [T]            where each token is in the flattened B × m places
    write_index [B]     position that a row's first token is written to; the m - n places behind its n tokens are
                        written too, so write_index + m must not exceed S, and what is there must not be needed
    wanted [W]          of which tokens logits are wanted
    visible [1]         positions that attention looks at, at least all of the longest row; for ONNX Runtime only
    keys.i, values.i    KV cache of layer i, [B, kv_heads, S, head_dim], float32 or float16: a run of slots
Outputs:
    logits float32 [W, vocab]
    features float32 [W, hidden]    what the LM head saw
    new_keys.i, new_values.i        like the inputs, and to be bound to the same memory

A token sees the positions up to its own, in layers with a sliding window the last ones of those. That is computed in
the graph from `positions`, so nothing has to be cleared: what a rejected draft or an earlier owner left in a slot is
behind every position that is seen, until it is overwritten.

The nodes are those of ONNX opset 24 that both runtimes take: TensorScatter (linear) for the cache, Attention with a
boolean mask and grouped heads, RotaryEmbedding, RMSNormalization. `visible` is a Slice between cache and attention,
without which ONNX Runtime would read all of a slot for every token; TensorRT wants S fixed there and stops by the mask.
int8 weights are DequantizeLinear nodes, symmetric, one scale per output channel (with zeros for zero points, without
which ONNX Runtime fails where it turns them into uint8: on processors without VNNI). int4 weights are such nodes with a
scale for each group of inputs, and 8 is taken off the codes to make them symmetric. What is missing then, the inputs'
sums by group with what a code of 8 stands for, is a product of its own. The LM head has int8 weights in that case.
w8a8 has int8 weights, and QuantizeLinear and DequantizeLinear around the inputs of linear layers (not the LM
head's and down_proj's), symmetric, with one scale that was calibrated; before, each channel has its factor: see
build_engines.smooth_quant.

A graph may be a stage of a pipeline, which has some of the layers. All but the first have the hidden states [T, hidden]
as input `received` in place of `tokens`, all but the last as output `passed` in place of logits and features.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from build_engines.errors import BuildError
from build_engines.int4_weights import quantize
from build_engines.language_architecture import Architecture
from build_engines.language_graph import Graph
from build_engines.smooth_quant import Smoothed
from tandem.engines.onnxruntime import MODEL_FILE
from tandem.engines.session import GRAPH, MAX_STAGES
from tandem.engines.slots import SPARE_POSITIONS

_INT8_MAX = 127
_INT4_ZERO = 8


def export(
    architecture: Architecture,
    directory: Path,
    *,
    weights: str,
    length: int,
    kv_cache: str = "f32",
    fixed_length: bool = False,
    stage: tuple[int, int] = (0, 1),
    group_size: int = 32,
    smoothed: Mapping[str, Smoothed] | None = None,
) -> Path:
    """Write model.onnx and its weights to `directory`, or for a stage of a pipeline model.<its number>.onnx.

    Args:
        architecture: the model.
        directory: exists.
        weights: fp32, fp16, int8, w8a8 or int4 (activations in fp32), or with -fp16 behind it one of the last three (in
            fp16).
        group_size: inputs that share a scale, for int4.
        length: tokens of the longest text; a slot has `SPARE_POSITIONS` more.
        kv_cache: f32 or f16; with activations in fp16 always f16.
        fixed_length: without `visible`, as TensorRT wants it.
        stage: its number, from 0, and how many there are; each has as many layers as the others, or one less.
        smoothed: of the inputs of linear layers, for w8a8.

    Returns:
        The path of the graph.
    """
    number, stages = stage
    if not 1 <= stages <= min(MAX_STAGES, len(architecture.layers)):
        most = min(MAX_STAGES, len(architecture.layers))
        raise BuildError(f"{stages} stages: this model of {len(architecture.layers)} layers can have 1 to {most}")
    first, end = (len(architecture.layers) * border // stages for border in (number, number + 1))
    path = directory / (MODEL_FILE if stages == 1 else f"{GRAPH}.{number}.onnx")
    layers = range(first, end)
    positions = length + SPARE_POSITIONS
    run = _Export(architecture, path, weights, positions, kv_cache, fixed_length, layers, group_size, smoothed or {})
    return run.run()


class _Export:
    def __init__(
        self,
        model: Architecture,
        path: Path,
        weights: str,
        positions: int,
        kv_cache: str,
        fixed: bool,
        layers: range,
        group: int,
        smoothed: Mapping[str, Smoothed],
    ) -> None:
        self._model = model
        self._layers = layers
        self._positions = positions
        self._fixed = fixed
        self._bits = weights.removesuffix("-fp16")
        self._group = group
        self._smoothed = smoothed
        self._dtype = np.float16 if weights.endswith("fp16") else np.float32
        self._cache_shape: list[int | str] = ["B", model.kv_heads, positions, model.head_dim]
        self._type = TensorProto.FLOAT16 if weights.endswith("fp16") else TensorProto.FLOAT
        self._cache_type = TensorProto.FLOAT16 if kv_cache == "f16" else self._type
        self._graph = Graph(path.parent, path.name)

    def run(self) -> Path:
        graph, model = self._graph, self._model
        is_first, is_last = self._layers.start == 0, self._layers.stop == len(model.layers)
        integers = [("positions", ["T"]), ("unpack", ["B", "m"]), ("pack", ["T"]), ("write_index", ["B"])]
        if is_first:
            integers.insert(0, ("tokens", ["T"]))
        if is_last:
            integers.append(("wanted", ["W"]))
        for name, shape in integers:
            graph.input(name, TensorProto.INT64, shape)
        if not self._fixed:
            graph.input("visible", TensorProto.INT64, [1])
        layers = [model.layers[index] for index in self._layers]
        masks = {layer.window: self._mask(layer.window) for layer in layers}
        graph.add("Unsqueeze", "positions", graph.integers(0), name="rotary_positions")
        if is_first:
            hidden = graph.add("Gather", self._constant("embedding", model.embedding), "tokens", axis=0)
        else:
            hidden = graph.input("received", self._type, ["T", model.hidden])
        for index, layer in zip(self._layers, layers, strict=True):
            name = f"layers.{index}"
            normed = self._norm(hidden, f"{name}.input_layernorm")
            attended = self._attention(normed, index, masks[layer.window])
            if model.is_gemma:
                attended = self._norm(attended, f"{name}.post_attention_layernorm")
            hidden = graph.add("Add", hidden, attended)
            before = "pre_feedforward_layernorm" if model.is_gemma else "post_attention_layernorm"
            forwarded = self._feed_forward(self._norm(hidden, f"{name}.{before}"), name)
            if model.is_gemma:
                forwarded = self._norm(forwarded, f"{name}.post_feedforward_layernorm")
            hidden = graph.add("Add", hidden, forwarded)
        if is_last:
            self._answer(hidden)
        else:
            graph.add("Identity", hidden, name="passed")
            graph.output("passed", self._type, ["T", model.hidden])
        for index in self._layers:
            for kind in ("keys", "values"):
                graph.output(f"new_{kind}.{index}", self._cache_type, self._cache_shape)
        return graph.save()

    def _answer(self, hidden: str) -> None:
        """Logits and features of the wanted tokens."""
        graph, model = self._graph, self._model
        picked = self._norm(graph.add("Gather", hidden, "wanted", axis=0), "norm")
        graph.add("Cast", self._linear(picked, "lm_head", model.head), name="logits", to=TensorProto.FLOAT)
        graph.add("Cast", picked, name="features", to=TensorProto.FLOAT)
        graph.output("logits", TensorProto.FLOAT, ["W", model.vocab])
        graph.output("features", TensorProto.FLOAT, ["W", model.hidden])

    def _mask(self, window: int | None) -> str:
        """bool [B, 1, m, positions that are looked at]: what each place of a row sees."""
        graph = self._graph
        places = graph.add("Gather", "positions", "unpack", axis=0)
        places = graph.add("Unsqueeze", places, graph.integers(1, 3))
        every = graph.constant("every_position", np.arange(self._positions, dtype=np.int64))
        if not self._fixed:
            every = graph.add("Slice", every, graph.integers(0), "visible", graph.integers(0))
        mask = graph.add("LessOrEqual", every, places)
        if window is None:
            return mask
        behind = graph.add("Sub", places, graph.integers(window))
        return graph.add("And", mask, graph.add("Greater", every, behind))

    def _attention(self, hidden: str, index: int, mask: str) -> str:
        graph, model, name = self._graph, self._model, f"layers.{index}.self_attn"
        sizes = [model.heads * model.head_dim, *[model.kv_heads * model.head_dim] * 2]
        merged = self._linear(hidden, f"{name}.qkv", *model.linear(*(f"{name}.{part}_proj" for part in "qkv")))
        split = graph.add("Split", merged, graph.integers(*sizes), name=f"{name}.split", outputs=3, axis=-1)
        queries = self._rotated(f"{split}.0", f"{name}.q_norm", model.heads, index)
        keys = self._rotated(f"{split}.1", f"{name}.k_norm", model.kv_heads, index)
        seen = [
            self._cached("keys", index, self._rows(keys, model.kv_heads)),
            self._cached("values", index, self._rows(f"{split}.2", model.kv_heads)),
        ]
        result = graph.add("Attention", self._rows(queries, model.heads), *seen, mask, scale=model.scale)
        result = graph.add("Transpose", result, perm=[0, 2, 1, 3])
        result = graph.add("Reshape", result, graph.integers(-1, sizes[0]))
        packed = graph.add("Gather", result, "pack", axis=0)
        return self._linear(packed, f"{name}.o_proj", *model.linear(f"{name}.o_proj"))

    def _rotated(self, value: str, norm: str, heads: int, index: int) -> str:
        """[T, heads × head_dim], normalized by head where the model does so, and rotated to its positions."""
        graph, model = self._graph, self._model
        width = heads * model.head_dim
        if model.has(f"{norm}.weight"):
            by_head = graph.add("Reshape", value, graph.integers(-1, heads, model.head_dim))
            value = self._norm(by_head, norm)
        batched = graph.add("Reshape", value, graph.integers(1, -1, width))
        kind = model.layers[index].kind
        tables = [
            self._constant(f"{kind}.cos", model.rotaries[kind].cos),
            self._constant(f"{kind}.sin", model.rotaries[kind].sin),
        ]
        rotated = graph.add("RotaryEmbedding", batched, *tables, "rotary_positions", num_heads=heads)
        return graph.add("Reshape", rotated, graph.integers(-1, width))

    def _rows(self, packed: str, heads: int) -> str:
        """[T, heads × head_dim] to [B, heads, m, head_dim]."""
        graph = self._graph
        rows = graph.add("Gather", packed, "unpack", axis=0)
        rows = graph.add("Reshape", rows, graph.integers(0, 0, heads, self._model.head_dim))
        return graph.add("Transpose", rows, perm=[0, 2, 1, 3])

    def _cached(self, kind: str, index: int, new: str) -> str:
        """Write to the cache; returns what attention is to see of it."""
        graph = self._graph
        cache = graph.input(f"{kind}.{index}", self._cache_type, self._cache_shape)
        is_smaller = self._cache_type != self._type
        if is_smaller:
            new = graph.add("Cast", new, to=self._cache_type)
        written = graph.add("TensorScatter", cache, new, "write_index", name=f"new_{kind}.{index}", axis=2)
        if not self._fixed:
            written = graph.add("Slice", written, graph.integers(0), "visible", graph.integers(2))
        return graph.add("Cast", written, to=self._type) if is_smaller else written

    def _feed_forward(self, hidden: str, layer: str) -> str:
        graph, model, name = self._graph, self._model, f"{layer}.mlp"
        merged = self._linear(hidden, f"{name}.gate_up", *model.linear(f"{name}.gate_proj", f"{name}.up_proj"))
        split = graph.add("Split", merged, name=f"{name}.split", outputs=2, axis=-1, num_outputs=2)
        gate = f"{split}.0"
        if model.activation == "silu":
            active = graph.add("Mul", gate, graph.add("Sigmoid", gate))
        else:
            active = graph.add("Gelu", gate, approximate="tanh")
        product = graph.add("Mul", active, f"{split}.1")
        return self._linear(product, f"{name}.down_proj", *model.linear(f"{name}.down_proj"))

    def _norm(self, value: str, name: str) -> str:
        weight = self._constant(name, self._model.weight(f"{name}.weight"))
        return self._graph.add("RMSNormalization", value, weight, axis=-1, epsilon=self._model.epsilon)

    def _linear(
        self, value: str, name: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None = None
    ) -> str:
        graph = self._graph
        if name in self._smoothed:
            value = self._in_int8(value, name, self._smoothed[name])
        if self._bits == "int4" and name != "lm_head" and len(weight) % self._group == 0:
            result = self._int4(value, name, weight)
        elif self._bits in ("int8", "w8a8", "int4"):
            result = graph.add("MatMul", value, self._int8(name, weight))
        else:
            result = graph.add("MatMul", value, self._constant(name, weight))
        return result if bias is None else graph.add("Add", result, self._constant(f"{name}.bias", bias))

    def _int4(self, value: str, name: str, weight: npt.NDArray[np.float32]) -> str:
        """The product with a weight [in, out] whose groups have a scale and a minimum."""
        graph, groups = self._graph, len(weight) // self._group
        codes, scale, minimum = quantize(weight.T, self._group)
        stored = graph.int4(name, codes.reshape(weight.shape[::-1]).T.astype(np.int8) - _INT4_ZERO)
        scales = self._constant(f"{name}.scale", scale[:, :, 0].T)
        dequantized = graph.add("DequantizeLinear", stored, scales, axis=0, block_size=self._group)
        by_group = graph.add("Reshape", value, graph.integers(-1, groups, self._group))
        sums = graph.add("ReduceSum", by_group, graph.integers(-1), keepdims=0)
        middle = self._constant(f"{name}.middle", (minimum + _INT4_ZERO * scale)[:, :, 0].T)
        return graph.add("Add", graph.add("MatMul", value, dequantized), graph.add("MatMul", sums, middle))

    def _in_int8(self, value: str, name: str, smoothed: Smoothed) -> str:
        """The inputs of a linear layer, rounded to what int8 can say."""
        graph = self._graph
        scaled = graph.add("Mul", value, self._constant(f"{name}.factor", smoothed.factor))
        step = self._constant(f"{name}.step", np.array(smoothed.largest / _INT8_MAX))
        zero = graph.constant("int8.zero", np.array(0, np.int8))
        return graph.add("DequantizeLinear", graph.add("QuantizeLinear", scaled, step, zero), step, zero)

    def _int8(self, name: str, weight: npt.NDArray[np.float32]) -> str:
        """Symmetric, one scale per output channel."""
        scale = np.maximum(np.abs(weight).max(axis=0) / _INT8_MAX, np.finfo(np.float16).tiny).astype(self._dtype)
        rounded = np.clip(np.rint(weight / scale.astype(np.float32)), -_INT8_MAX, _INT8_MAX).astype(np.int8)
        graph = self._graph
        stored, scales = graph.constant(name, rounded), graph.constant(f"{name}.scale", scale)
        zeros = graph.constant(f"{name}.zeros", np.zeros(len(scale), np.int8))
        return graph.add("DequantizeLinear", stored, scales, zeros, axis=1)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        return self._graph.constant(name, value.astype(self._dtype))
