"""Attention with softcapped scores (Gemma 2) over the paged KV cache.

OpenVINO's PagedAttention cannot cap scores, so its nodes are replaced by plain operations: past keys and values are
gathered by block, the new ones appended, and softmax(cap * tanh(scale * q·k / cap)) is taken over the visible ones
(Gemma 2 report, arXiv:2408.00118, section 2). That copies each row's past in every layer, so it is used only where a
model asks for it. New keys and values leave as outputs, and `store` writes them into the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

Array = npt.NDArray[Any]

RT_INFO = ["tandem", "attention_softcap"]
BLOCK_SIZE = 32
_HIDDEN = -1e30  # finite: a padded query that sees nothing must not become NaN
_NEVER = np.iinfo(np.int32).max  # position of a key that no query sees

_INPUTS = {
    "block_table": ([-1, -1], np.int64),  # [rows, blocks]: blocks of each row's past
    "row_tokens": ([-1, -1], np.int64),  # [rows, queries]: index of each row's new tokens in the flat batch
    "query_positions": ([-1, -1], np.int32),  # [rows, queries]
    "key_positions": ([-1, -1], np.int32),  # [rows, blocks * BLOCK_SIZE + queries]
    "token_slots": ([-1], np.int64),  # [tokens]: row * queries + query, the way back to the flat batch
}  # fmt: skip


def softcap_of(model: ov.Model) -> float | None:
    """The cap that the builder noted in the model, or None if its attention is the usual one."""
    if not model.has_rt_info(RT_INFO):
        return None
    return float(model.get_rt_info(RT_INFO).astype(str))


class SoftcapAttention:
    """Rewrites a model after the paged attention transformation, then makes its inputs and keeps its cache.

    The caches must be f32, and the arithmetic too: with another type the runtime would convert the whole pool in
    every step.
    """

    def __init__(self, model: ov.Model, cap: float) -> None:
        """Replace every PagedAttention node of `model`, and the inputs that only those used.

        The ports `key_cache.<i>` and `value_cache.<i>` become f32 [blocks, kv_heads, BLOCK_SIZE, head_dim]; the new
        keys and values are outputs 1, 2 (first layer), 3, 4 and so on, f32 [tokens, kv_heads * head_dim].
        """
        self._cap = np.float32(cap)
        self._parameters = {name: ops.parameter(shape, dtype, name=name) for name, (shape, dtype) in _INPUTS.items()}
        for name, parameter in self._parameters.items():
            parameter.output(0).set_names({name})
        self._caches: list[str] = []  # port names; the new values of number i are output i + 1
        results = []
        for node in [op for op in model.get_ops() if op.get_type_name() == "PagedAttentionExtension"]:
            attention = self._attention(node)
            new = [node.input_value(1), node.input_value(2)]
            node.output(0).replace(attention.output(0))
            results += [ops.result(value) for value in new]
        model.add_parameters(list(self._parameters.values()))
        model.add_results(results)
        for parameter in model.get_parameters():
            if not parameter.output(0).get_target_inputs():
                model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()

    def _attention(self, node: Any) -> Any:
        """Operations in the place of one PagedAttention node: f32 [tokens, heads * head_dim]."""
        sizes = {name: int(value.astype(int)) for name, value in node.get_rt_info().items() if "head" in name}
        kv_heads, key_dim, value_dim = sizes["num_k_heads"], sizes["k_head_size"], sizes["v_head_size"]
        group = node.input_value(0).get_partial_shape()[1].get_length() // (kv_heads * key_dim)
        query = _reshape(self._by_row(node.input_value(0)), [0, 0, kv_heads, group, key_dim])
        query = _transpose(query, [0, 2, 3, 1, 4])  # [rows, kv_heads, group, queries, head_dim]
        keys = self._keys(node, 1, kv_heads, key_dim)  # [rows, kv_heads, 1, keys, head_dim]
        values = self._keys(node, 2, kv_heads, value_dim)
        scale = ops.divide(node.input_value(9), self._cap)
        scores = ops.multiply(ops.tanh(ops.multiply(ops.matmul(query, keys, False, True), scale)), self._cap)
        weights = ops.softmax(ops.add(scores, self._mask(node.input_value(10))), -1)
        mixed = _transpose(ops.matmul(weights, values, False, False), [0, 3, 1, 2, 4])
        flat = ops.reshape(mixed, np.array([-1, kv_heads * group * value_dim]), False)  # [rows * queries, heads * dim]
        return ops.gather(flat, self._parameters["token_slots"], np.int64(0))

    def _by_row(self, value: Any) -> Any:
        """[tokens, width] to [rows, queries, width]."""
        return ops.gather(value, self._parameters["row_tokens"], np.int64(0))

    def _keys(self, node: Any, index: int, kv_heads: int, dim: int) -> Any:
        """Keys (index 1) or values (2) of past and new tokens: [rows, kv_heads, 1, keys, dim]."""
        cache = node.input_value(index + 2).get_node()
        self._caches.append(next(iter(cache.output(0).get_names())))
        cache.set_element_type(ov.Type.f32)
        cache.set_partial_shape(ov.PartialShape([-1, kv_heads, BLOCK_SIZE, dim]))
        cache.validate_and_infer_types()
        past = ops.gather(cache, self._parameters["block_table"], np.int64(0))  # [rows, blocks, kv_heads, 32, dim]
        past = _reshape(_transpose(past, [0, 2, 1, 3, 4]), [0, kv_heads, 1, -1, dim])
        new = _reshape(self._by_row(node.input_value(index)), [0, 0, kv_heads, dim])
        new = _reshape(_transpose(new, [0, 2, 1, 3]), [0, kv_heads, 1, -1, dim])
        return ops.concat([past, new], 3)

    def _mask(self, window: Any) -> Any:
        """What is added to the scores, [rows, 1, 1, queries, keys]; window: 0 or how far back a query sees."""
        queries = _reshape(self._parameters["query_positions"], [0, 1, 1, -1, 1])
        keys = _reshape(self._parameters["key_positions"], [0, 1, 1, 1, -1])
        window = ops.convert(window, "i32")
        near = ops.logical_or(ops.equal(window, np.int32(0)), ops.less(ops.subtract(queries, keys), window))
        visible = ops.logical_and(ops.less_equal(keys, queries), near)
        return ops.select(visible, np.float32(0), np.float32(_HIDDEN))

    def feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs of the rewritten model from those of a paged one."""
        past, begins = feeds["past_lens"], feeds["subsequence_begins"]
        counts = np.diff(begins)
        block_begins, block_indices = feeds["block_indices_begins"], feeds["block_indices"]
        rows, queries, blocks = len(past), int(counts.max()), max(1, -(-int(past.max()) // BLOCK_SIZE))
        step = np.arange(queries)
        real = step < counts[:, None]
        table = np.zeros((rows, blocks), np.int64)
        for row, length in enumerate(past):
            used = -(-int(length) // BLOCK_SIZE)
            table[row, :used] = block_indices[block_begins[row] : block_begins[row] + used]
        positions = (past[:, None] + step).astype(np.int32)
        places = np.arange(blocks * BLOCK_SIZE, dtype=np.int32)
        old = np.where(places < past[:, None], places, _NEVER)
        own = {
            "block_table": table,
            "row_tokens": np.where(real, begins[:-1, None] + step, 0).astype(np.int64),
            "query_positions": positions,
            "key_positions": np.concatenate([old, np.where(real, positions, _NEVER)], 1).astype(np.int32),
            "token_slots": np.flatnonzero(real).astype(np.int64),
        }
        kept = {name: value for name, value in feeds.items() if name not in _PAGED_ONLY}
        return kept | own

    def store(self, request: ov.InferRequest, feeds: Mapping[str, Array]) -> None:
        """After an inference: write the new keys and values into the pool. `feeds`: those of the paged model."""
        positions = feeds["position_ids"]
        row_of_token = np.repeat(np.arange(len(feeds["past_lens"])), np.diff(feeds["subsequence_begins"]))
        blocks = feeds["block_indices"][feeds["block_indices_begins"][row_of_token] + positions // BLOCK_SIZE]
        first = len(request.model_outputs) - len(self._caches)
        for number, name in enumerate(self._caches, first):
            pool = request.get_tensor(name).data
            new = request.get_output_tensor(number).data
            pool[blocks, :, positions % BLOCK_SIZE] = new.reshape(len(new), pool.shape[1], pool.shape[3])


_PAGED_ONLY = {"past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len"}


def _reshape(value: Any, shape: list[int]) -> Any:
    """Reshape in which 0 keeps the dimension of the input."""
    return ops.reshape(value, np.array(shape, np.int64), True)


def _transpose(value: Any, order: list[int]) -> Any:
    return ops.transpose(value, np.array(order, np.int64))
