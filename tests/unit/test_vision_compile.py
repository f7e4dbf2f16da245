"""The compile check of graphs for TensorRT, on small ones; those of the models: tests/load/test_vision_compile.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from build_engines.errors import BuildError
from build_engines.vision.compile_check import compile_for
from build_engines.vision.tensorrt_engine import require_explicit


def onnx_model(*extra: onnx.NodeProto, last: str = "mean") -> onnx.ModelProto:
    """Pixels to logits by one convolution in FP16, then the `extra` nodes, of which `last` is the output."""
    weights = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float16), "w")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast", to=onnx.TensorProto.FLOAT16),
        helper.make_node("Transpose", ["x"], ["t"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"], "conv"),
        helper.make_node("ReduceMean", ["c", "axes"], ["mean"], "mean", keepdims=0),
        *extra,
        helper.make_node("Cast", [last], ["logits"], "out", to=onnx.TensorProto.FLOAT),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["n", 16, 16, 3])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "small", [image], [logits], [weights, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_node_that_is_not_supported_is_named(tmp_path: Path) -> None:
    """Negative control: the same graph compiles without the planted node and does not with it."""
    onnx.save(onnx_model(), tmp_path / "good.onnx")
    assert compile_for(tmp_path / "good.onnx", "8.6") > 1000
    planted = helper.make_node("Det", ["mean"], ["planted"], "planted_node")
    onnx.save(onnx_model(planted, last="planted"), tmp_path / "bad.onnx")
    with pytest.raises(BuildError, match=r"bad.onnx does not compile for a GPU: planted_node \(Det\)"):
        compile_for(tmp_path / "bad.onnx", "8.6")


def test_an_architecture_that_does_not_exist(tmp_path: Path) -> None:
    onnx.save(onnx_model(), tmp_path / "good.onnx")
    with pytest.raises(BuildError, match=r"no compute capability 1\.0, only .*86"):
        compile_for(tmp_path / "good.onnx", "1.0")


@pytest.mark.parametrize(("kind", "value"), [(np.uint8, 0), (np.int8, 3)])
def test_zero_points_that_tensorrt_refuses(kind: type, value: int, tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(0.1, np.float16), "scale")
    zero = numpy_helper.from_array(np.array(value, kind), "zero")
    pair = [
        helper.make_node("QuantizeLinear", ["mean", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
    ]
    model = onnx_model(*pair, last="d")
    model.graph.initializer.extend([scale, zero])
    onnx.save(model, tmp_path / "pair.onnx")
    with pytest.raises(BuildError, match="zero point that TensorRT refuses"):
        require_explicit(tmp_path / "pair.onnx")


def test_a_graph_without_pairs_is_no_int8(tmp_path: Path) -> None:
    onnx.save(onnx_model(), tmp_path / "plain.onnx")
    with pytest.raises(BuildError, match="no Q/DQ pairs"):
        require_explicit(tmp_path / "plain.onnx")
