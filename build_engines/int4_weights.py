"""Weights in 4 bits with a scale and a minimum for each group, as GGUF has them in Q4_1.

The minimum is a number like the scale, and not a multiple of it as an integer zero point would make it. So a checkpoint
that was published in Q4_1 is kept as it is, and others lose less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HIGHEST = 15


def quantize(
    weight: npt.NDArray[np.float32], group: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Codes 0 .. 15, scales and minima, so that a weight is about `code * scale + minimum`.

    Args:
        weight: float32 [out, in]; `in` is a multiple of `group`.

    Returns:
        uint8 [out, groups, group], and twice float32 [out, groups, 1].
    """
    grouped = weight.reshape(len(weight), -1, group)
    least, most = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    scale = np.maximum((most - least) / HIGHEST, np.finfo(np.float16).tiny).astype(np.float32)
    codes = np.clip(np.rint((grouped - least) / scale), 0, HIGHEST).astype(np.uint8)
    return codes, scale, least.astype(np.float32)


def packed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two codes to a byte, the first in the low half."""
    flat = codes.ravel()
    return np.bitwise_or(flat[0::2], np.left_shift(flat[1::2], 4), dtype=np.uint8)


def compress_openvino(model: Any, group: int) -> None:
    """Replace the weights of an OpenVINO model's linear layers, but not of the LM head, nor where groups do not fit."""
    from openvino import opset13 as ops

    vocabulary = model.output("logits").partial_shape[2].get_length()
    for node in model.get_ordered_ops():
        constant = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if constant is None or constant.get_type_name() != "Constant" or len(constant.shape) != 2:
            continue
        if constant.shape[0] == vocabulary or constant.shape[1] % group:
            continue
        assert node.get_attributes()["transpose_b"]
        weight = constant.data.astype(np.float32)
        codes, scale, minimum = quantize(weight, group)
        value = ops.convert(_constant(codes), np.float16)
        value = ops.subtract(value, ops.constant((-minimum / scale).astype(np.float16)))
        value = ops.multiply(value, ops.constant(scale.astype(np.float16)))
        value = ops.reshape(value, ops.constant(np.array(weight.shape, np.int64)), False)
        node.input(1).replace_source_output(ops.convert(value, np.float32).output(0))


def _constant(codes: npt.NDArray[np.uint8]) -> Any:
    import openvino as ov

    tensor = ov.Tensor(ov.Type.u4, ov.Shape(codes.shape))
    np.asarray(tensor.data).view(np.uint8).ravel()[:] = packed(codes)
    return ov.op.Constant(tensor, shared_memory=False)
