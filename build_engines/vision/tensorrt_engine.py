"""What TensorRT gets: a strongly typed FP16 graph, and one with explicit INT8 Q/DQ pairs; a plan too where it runs.

TensorRT 11 builds networks as they are typed: FP16 is a graph of FP16 tensors, INT8 a graph with Q/DQ nodes. Pixels
stay UINT8 at the border and are cast inside; logits leave as FP32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.progress import quiet
from build_engines.vision import onnxruntime_engine
from build_engines.vision.recipes import Material
from build_engines.vision.tensorrt_plan import write_plan

FILE = "model.onnx"


def fp16(material: Material, directory: Path) -> str:
    """All tensors between pixels and logits in FP16."""
    import onnx

    save_halved(onnx.load(material.graph), directory / FILE)
    return write_plan(directory / FILE, directory) or FILE


def int8(material: Material, directory: Path) -> str:
    """Convolutions and the matrix product in INT8, the rest in FP16."""
    import onnx

    partial = directory / "quantized.onnx"
    onnxruntime_engine.quantize(material, partial, symmetric=True)
    save_halved(onnx.load(partial), directory / FILE)
    partial.unlink()
    require_explicit(directory / FILE)
    return write_plan(directory / FILE, directory) or FILE


def save_halved(model: Any, path: Path) -> None:
    """Write an ONNX model with all tensors but inputs and outputs in FP16, checked."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        del model.graph.value_info[:]
        halved = convert_float_to_float16(model, keep_io_types=True, op_block_list=[], disable_shape_infer=False)
        del halved.graph.value_info[:]
        onnx.checker.check_model(halved, full_check=True)
    onnx.save(halved, path)


def require_explicit(path: Path) -> None:
    """Raise `BuildError` unless all Q/DQ pairs are what TensorRT reads: signed, with zero points of zero."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {item.name: item for item in graph.initializer}
    pairs = 0
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        pairs += 1
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and (zero.data_type != onnx.TensorProto.INT8 or numpy_helper.to_array(zero).any()):
            kind = onnx.TensorProto.DataType.Name(zero.data_type)
            raise BuildError(f"{path.name}: {node.name} has a zero point that TensorRT refuses: {kind}, not INT8 zeros")
    if not pairs:
        raise BuildError(f"{path.name}: the graph holds no Q/DQ pairs, so nothing of it would run in INT8")
