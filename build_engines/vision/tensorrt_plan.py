"""An ONNX graph through TensorRT's parser and builder; the same for TensorRT and TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from tandem import tensorrt_library
from tandem.vision.manifest import INPUT

FILE = "model.plan"
BATCHES = (1, 8, 32)  # the least, the most usual and the greatest


def write_plan(graph: Path, directory: Path) -> str | None:
    """Compile `graph` for the GPU of this machine into `directory`; the plan's name, None if TensorRT is not installed.

    This is for the Triton container, whose server loads the plan with the same TensorRT. It has not been run in this
    repository's tests, which have no GPU: they run `compiled` with TensorRT for RTX.

    Raises:
        BuildError: TensorRT refuses the graph.
    """
    try:
        trt = tensorrt_library.load()
    except ImportError:
        return None
    (directory / FILE).write_bytes(compiled(trt, graph, "this machine's GPU", BATCHES, lambda config: None))
    return FILE


def compiled(
    trt: Any, graph: Path, target: str, batches: tuple[int, int, int], configure: Callable[[Any], None]
) -> Any:
    """The serialized engine, a buffer; `configure` sets the builder up, `target` is what messages call the machine.

    Raises:
        BuildError: the parser or the builder refuses the graph; the message names the node where it can.
    """
    messages = _messages(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(graph)):
        raise BuildError(f"{graph.name} does not compile for a GPU: {_reason(parser, messages)}")
    config = builder.create_builder_config()
    configure(config)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name != INPUT:
            raise BuildError(f"{graph.name}: the input is named {tensor.name}, not {INPUT}")
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"{graph.name} does not compile for {target}: {messages.last()}")
    return engine


def _messages(trt: Any) -> Any:
    class Messages(trt.ILogger):
        """Keeps what goes wrong, prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)

        def last(self) -> str:
            return self.errors[-1] if self.errors else "no reason given"

    return Messages()


def _reason(parser: Any, messages: Any) -> str:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name() or f"node {error.node()}"
        return f"{node} ({error.node_operator() or 'unknown operator'}): {error.desc().strip().splitlines()[0]}"
    return str(messages.last())
