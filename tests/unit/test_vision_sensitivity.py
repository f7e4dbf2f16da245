"""The layers that INT8 harms are found, and left alone by the recipes that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from build_engines.vision import modelopt_engine, onnxruntime_engine, openvino_engine
from build_engines.vision.recipes import Material
from build_engines.vision.sensitivity import rounded, sensitive_layers


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Three layers. The largest weight in each channel of `bad` meets zeros; the others are too small beside it."""
    rng = np.random.default_rng(1)
    first = rng.normal(size=(32, 3, 3, 3)).astype(np.float32)
    first[0] = 0  # a channel that is always zero, and with it one of the next layer's inputs
    bad = rng.normal(size=(32, 32, 1, 1)).astype(np.float32)
    bad[:, 0] = 1000
    last = rng.normal(size=(32, 4)).astype(np.float32)
    constants = {"w1": first, "w2": bad, "w3": last, "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w1"], ["a"], "good"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "bad"),
        helper.make_node("ReduceMean", ["c", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "w3"], ["logits"], "last"),
    ]
    made = helper.make_graph(
        nodes, "three",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 16, 16, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    path = tmp_path / "three.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def test_only_the_layer_that_loses_is_named(graph: Path, images: np.ndarray) -> None:
    assert sensitive_layers(graph, images) == ["bad"]
    assert sensitive_layers(graph, images, most=2.0) == []
    assert sensitive_layers(graph, images, most=0.0) == ["good", "bad", "last"]


def test_rounding() -> None:
    weights = np.array([[0.5, -1.27, 0.004], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(rounded(weights, 0), [[0.5, -1.27, 0], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(rounded(weights, 1), weights)  # each column has a step of its own


@pytest.mark.parametrize("make", [onnxruntime_engine.int8, modelopt_engine.int8])
@pytest.mark.parametrize("sensitive", [[], ["bad"]])
def test_onnx_recipes_leave_it_alone(
    make, sensitive: list[str], graph: Path, images: np.ndarray, tmp_path: Path
) -> None:
    file = make(Material(lambda: None, graph, lambda: images, sensitive), tmp_path)  # type: ignore[arg-type,return-value]
    made = onnx.load(tmp_path / file).graph
    scaled = {output for node in made.node if node.op_type == "DequantizeLinear" for output in node.output}
    int8 = {node.name for node in made.node if node.op_type == "Conv" and node.input[1] in scaled}
    assert int8 == {"good", "bad"} - set(sensitive)


@pytest.mark.parametrize("sensitive", [[], ["bad"]])
def test_openvino_leaves_it_alone(sensitive: list[str], graph: Path, images: np.ndarray, tmp_path: Path) -> None:
    import openvino as ov

    file = openvino_engine.int8(Material(lambda: None, graph, lambda: images, sensitive), tmp_path)  # type: ignore[arg-type,return-value]
    weights = {
        item.get_friendly_name(): item.input_value(1).get_node().get_type_name()
        for item in ov.Core().read_model(tmp_path / file).get_ordered_ops()
        if item.get_type_name() == "Convolution"
    }
    assert weights["good"] != "Constant"
    assert (weights["bad"] == "Constant") == bool(sensitive)
