"""Does a graph compile for a GPU? Told on a machine without one, by TensorRT for RTX.

It has the ONNX parser and nearly the builder of TensorRT 11, and compiles for a named architecture without a device.
What it makes cannot be run here, and it is strong evidence for full TensorRT, not proof.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from tandem.vision.manifest import INPUT

ARCHITECTURES = ("8.6", "8.9", "12.0")  # Ampere, Ada and Blackwell of the RTX line


def compile_for(path: Path, architecture: str, batches: tuple[int, int, int] = (1, 8, 32)) -> int:
    """Bytes of the engine that the graph in `path` becomes for a compute capability such as `8.6`.

    `batches` are the least, the most usual and the greatest batch.

    Raises:
        BuildError: TensorRT for RTX is not installed, or it refuses the graph; the message names the node.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise BuildError(f"TensorRT for RTX does not import: {error}. `make setup` installs it.") from error
    capability = getattr(trt.ComputeCapability, f"SM{architecture.replace('.', '')}", None)
    if capability is None:
        known = sorted(name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise BuildError(f"TensorRT for RTX knows no compute capability {architecture}, only {', '.join(known)}")
    messages = _messages(trt)
    builder = trt.Builder(messages)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    if not parser.parse_from_file(str(path)):
        raise BuildError(f"{path.name} does not compile for a GPU: {_reason(parser, messages)}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name != INPUT:
            raise BuildError(f"{path.name}: the input is named {tensor.name}, not {INPUT}")
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildError(f"{path.name} does not compile for compute capability {architecture}: {messages.last()}")
    return int(engine.nbytes)


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
        node = error.node_name() if error.node_name() else f"node {error.node()}"
        return f"{node} ({error.node_operator() or 'unknown operator'}): {error.desc().strip().splitlines()[0]}"
    return str(messages.last())
