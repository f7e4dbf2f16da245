"""One GPU as a session uses it: a stream, memory on both sides of the bus, and calls that fail loudly."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Staged:
    """Memory on the device and as much of it, pinned, on the host."""

    device: int
    pinned: int
    host: npt.NDArray[Any]  # the pinned memory, flat


class CudaDevice:
    """A GPU, and a stream that all work on it goes to."""

    def __init__(self, cuda: Any, number: int = 0) -> None:
        """`cuda` is the module `cuda.bindings.runtime`; `number` that of the GPU."""
        self._cuda = cuda
        self._number = number
        self.use()
        self.stream: Any = self.call("cudaStreamCreate")

    def use(self) -> None:
        """Before any other call on a thread: CUDA remembers the device by thread, and steps come from several."""
        self.call("cudaSetDevice", self._number)

    def call(self, name: str, *arguments: Any) -> Any:
        """See `call`."""
        return call(self._cuda, name, *arguments)

    def stage(self, size: int, dtype: np.dtype[Any]) -> Staged:
        """Memory for `size` items of a type."""
        count = size * dtype.itemsize
        pinned = int(self.call("cudaHostAlloc", count, 0))
        memory = (ctypes.c_byte * count).from_address(pinned)
        return Staged(int(self.call("cudaMalloc", count)), pinned, np.frombuffer(memoryview(memory), dtype))

    def release(self, staged: Staged) -> None:
        """Give it back; nothing on the stream may need it any more."""
        self.call("cudaFree", staged.device)
        self.call("cudaFreeHost", staged.pinned)

    def send(self, staged: Staged, count: int) -> None:
        """Put a copy of the first `count` bytes to the device on the stream."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", staged.device, staged.pinned, count, kind, self.stream)

    def fetch(self, staged: Staged, count: int) -> None:
        """The same to the host."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", staged.pinned, staged.device, count, kind, self.stream)

    def wait(self) -> None:
        """Until all is done that is on the stream."""
        self.call("cudaStreamSynchronize", self.stream)


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime or driver; returns its result.

    Raises:
        RuntimeError: it failed.
    """
    error, *results = getattr(cuda, name)(*arguments)
    if int(error):
        raise RuntimeError(f"{name} failed: {error!r}")
    return results[0] if results else None


def compute_capability(cuda: Any, device: int = 0) -> str:
    """Of the GPU of this number, for example 8.9."""
    kinds = cuda.cudaDeviceAttr
    parts = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    return ".".join(str(call(cuda, "cudaDeviceGetAttribute", part, device)) for part in parts)
