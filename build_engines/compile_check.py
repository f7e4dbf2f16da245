"""Does a graph compile in TensorRT? Asked of TensorRT for RTX, which compiles for a GPU where there is none.

It has the ONNX parser and the strongly typed builder of TensorRT 11, so a graph that it takes is a graph that TensorRT
should take. It is evidence and no proof: nothing runs, and the engines are thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from build_engines.errors import BuildError
from build_engines.progress import stage

MOST_ROWS = 32  # of the optimization profile
MOST_TOKENS = 512


def compile_check(graph: Path, capabilities: Sequence[str]) -> dict[str, int]:
    """Compile `graph` for each compute capability; returns the bytes of each engine.

    Raises:
        BuildError: TensorRT refuses it, with the reasons; or TensorRT for RTX is not installed or does not know a
            capability.
    """
    trt = _library()
    known = {re.sub(r"(\d)$", r".\1", name[2:]): name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    sizes = {}
    for capability in capabilities:
        if capability not in known:
            raise BuildError(
                f"compute capability {capability} is not one of {', '.join(sorted(known, key=float))}, which TensorRT "
                f"for RTX {trt.__version__} compiles for"
            )
        with stage(f"compiling {graph.name} for compute capability {capability}"):
            sizes[capability] = _compile(trt, graph, capability, getattr(trt.ComputeCapability, known[capability]))
    return sizes


def _library() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise BuildError(f"the compile check needs tensorrt-rtx-cu13, which is not there: {error}") from error
    return tensorrt_rtx


def _compile(trt: Any, graph: Path, capability: str, target: Any) -> int:
    errors: list[str] = []

    class Log(trt.ILogger):
        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    engine = None
    if parser.parse_from_file(str(graph)):
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
        config.add_optimization_profile(_profile(builder, network, graph))
        engine = builder.build_serialized_network(network, config)
    else:
        errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if engine is None:
        reasons = refusals(graph) or [_shortened(errors)]
        raise BuildError(f"{graph.name} does not compile for compute capability {capability}: {'; '.join(reasons)}")
    return int(engine.nbytes)


def _profile(builder: Any, network: Any, graph: Path) -> Any:
    """Free dimensions from 1 to what a step may have; they are named in the graph, not in the network."""
    inputs = onnx.load(graph, load_external_data=False).graph.input
    shapes = {item.name: item.type.tensor_type.shape.dim for item in inputs}
    names = {name: [dimension.dim_param for dimension in shape] for name, shape in shapes.items()}
    # A row has fewer tokens than its slot has positions.
    slots = [shape[2].dim_value for name, shape in shapes.items() if name.startswith("keys.") and shape[2].dim_value]
    limits = {"B": MOST_ROWS, "m": min([MOST_TOKENS, *(positions - 1 for positions in slots)])}
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        dimensions = list(zip(tensor.shape, names[tensor.name], strict=True))
        least = [1 if size == -1 else size for size, _ in dimensions]
        most = [limits.get(name, MOST_TOKENS) if size == -1 else size for size, name in dimensions]
        profile.set_shape(tensor.name, least, most, most)
    return profile


def refusals(graph: Path) -> list[str]:
    """What is known that TensorRT does not take, in words; empty if a graph has none of it."""
    model = onnx.load(graph, load_external_data=False)
    constants = {item.name: item for item in model.graph.initializer}
    nodes = {operator: [n for n in model.graph.node if n.op_type == operator] for operator in _OPERATORS}
    caches = {node.input[0] for node in nodes["TensorScatter"]}
    found = []
    inputs = {item.name: item.type.tensor_type for item in model.graph.input}
    written = [inputs[name] for name in caches if name in inputs]
    if nodes["Attention"] and any(kind.elem_type == TensorProto.FLOAT for kind in written):
        found.append("attention is computed in FP32, and TensorRT has it in FP16 and BF16 only: build with fp16")
    if any(not kind.shape.dim[2].HasField("dim_value") for kind in written) or any(
        _is_cut(model, node) for node in nodes["Attention"]
    ):
        found.append("the length of the KV cache that attention reads is not fixed, which TensorRT's cache needs")
    if any(len(n.input) > 2 and _is_nonzero(constants.get(n.input[2]), graph) for n in nodes["DequantizeLinear"]):
        found.append("a quantized tensor has a zero point other than 0, and TensorRT takes symmetric ones only")
    if any(attribute.name == "softcap" for node in nodes["Attention"] for attribute in node.attribute):
        found.append("attention scores are capped (softcap), which TensorRT does not have")
    return found


_OPERATORS = ("Attention", "TensorScatter", "DequantizeLinear")


def _is_cut(model: Any, attention: Any) -> bool:
    """Whether a Slice lies between the cache and attention."""
    makers = {name: node for node in model.graph.node for name in node.output}
    maker = makers.get(attention.input[1])
    return maker is not None and maker.op_type == "Slice"


def _is_nonzero(zero_point: Any, graph: Path) -> bool:
    return zero_point is not None and bool(np.any(numpy_helper.to_array(zero_point, base_dir=str(graph.parent))))


def _shortened(errors: Sequence[str]) -> str:
    """The first thing that TensorRT says, without where in its source it says so."""
    first = errors[0] if errors else "TensorRT does not say why"
    return re.sub(r"\s+", " ", first.split("  (See")[0])[:300]
