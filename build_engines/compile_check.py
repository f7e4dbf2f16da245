"""Does a graph compile in TensorRT? Asked of TensorRT for RTX, which compiles for a GPU where there is none.

It has the ONNX parser and the strongly typed builder of TensorRT 11, so a graph that it takes is a graph that TensorRT
should take. It is evidence and no proof: nothing runs, and the engines are thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from build_engines.errors import BuildError
from build_engines.progress import stage
from tandem.engines.slots import FEW_TOKENS

MOST_ROWS = 32  # slots of the engine
MOST_TOKENS = 512  # of a prompt, in one step
# What the free dimensions of the contract may be, and usually are, in a step of rows with few tokens, and of one row
# with many: see tandem.engines.slots.
_PACKED = MOST_ROWS * FEW_TOKENS
_TOGETHER = {"B": (MOST_ROWS, 8), "m": (FEW_TOKENS, 2), "T": (_PACKED, 8), "W": (_PACKED, 8)}
_ALONE = {"B": (1, 1), "m": (MOST_TOKENS, MOST_TOKENS), "T": (MOST_TOKENS, MOST_TOKENS), "W": (MOST_TOKENS, 2)}


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
            target = getattr(trt.ComputeCapability, known[capability])
            sizes[capability] = int(compiled(trt, graph, capability, _for_target(target)).nbytes)
    return sizes


def _for_target(target: Any) -> Callable[[Any], None]:
    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)

    return configure


def _library() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise BuildError(f"the compile check needs tensorrt-rtx-cu13, which is not there: {error}") from error
    return tensorrt_rtx


def compiled(trt: Any, graph: Path, capability: str, configure: Callable[[Any], None]) -> Any:
    """The serialized engine of a graph of the contract, a buffer.

    Args:
        trt: TensorRT, or TensorRT for RTX.
        graph: an .onnx file.
        capability: what it is compiled for, for messages.
        configure: sets the builder's configuration up.

    Raises:
        BuildError: TensorRT refuses the graph, with the reasons.
    """
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
        configure(config)
        for sizes in (_TOGETHER, _ALONE):
            config.add_optimization_profile(_profile(builder, network, graph, sizes))
        engine = builder.build_serialized_network(network, config)
    else:
        errors += [parser.get_error(index).desc() for index in range(parser.num_errors)]
    if engine is None:
        reasons = refusals(graph) or [_shortened(errors)]
        raise BuildError(f"{graph.name} does not compile for compute capability {capability}: {'; '.join(reasons)}")
    return engine


def _profile(builder: Any, network: Any, graph: Path, sizes: Mapping[str, tuple[int, int]]) -> Any:
    """Free dimensions from 1 to what a step may have; they are named in the graph, not in the network."""
    inputs = onnx.load(graph, load_external_data=False).graph.input
    shapes = {item.name: item.type.tensor_type.shape.dim for item in inputs}
    names = {name: [dimension.dim_param for dimension in shape] for name, shape in shapes.items()}
    # A row has fewer tokens than its slot has positions.
    slots = [shape[2].dim_value for name, shape in shapes.items() if name.startswith("keys.") and shape[2].dim_value]
    longest = min([MOST_TOKENS, *(positions - 1 for positions in slots)])
    any_size = (MOST_TOKENS, MOST_TOKENS)

    def sized(dimensions: Sequence[tuple[int, str]], which: int) -> list[int]:
        found = [sizes.get(name, any_size)[which] if size == -1 else size for size, name in dimensions]
        return [min(size, longest) if name == "m" else size for size, (_, name) in zip(found, dimensions, strict=True)]

    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        dimensions = list(zip(tensor.shape, names[tensor.name], strict=True))
        least = [1 if size == -1 else size for size, _ in dimensions]
        profile.set_shape(tensor.name, least, sized(dimensions, 1), sized(dimensions, 0))
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
