"""Does a graph compile for a GPU? Told on a machine without one, by TensorRT for RTX.

It has the ONNX parser and nearly the builder of TensorRT 11, and compiles for a named architecture without a device.
What it makes cannot be run here, and it is strong evidence for full TensorRT, not proof.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.vision.tensorrt_plan import BATCHES, compiled

ARCHITECTURES = ("8.6", "8.9", "12.0")  # Ampere, Ada and Blackwell of the RTX line


def compile_for(path: Path, architecture: str, batches: tuple[int, int, int] = BATCHES) -> int:
    """Bytes of the engine that the graph in `path` becomes for a compute capability such as `8.6`.

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

    def choose(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)

    return int(compiled(trt, path, f"compute capability {architecture}", batches, choose).nbytes)
