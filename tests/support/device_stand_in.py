"""A stand-in for a GPU, to run what drives one: memory is the host's, and a plan is computed by ONNX Runtime.

Only what `tandem.engines.tensorrt` and its neighbours call is here. That the real libraries have it with these
arguments is another test's matter (tests/unit/test_tensorrt_api.py); here it is strict about what a device would not
forgive: copies outside of what was allocated, shapes outside of the profile, tensors without an address, a cache whose
old and new address differ, and results that are read before the stream was waited for.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from tiny_models import VOCABULARY

from build_engines import device_kernels
from tandem.engines.device_choice import KERNELS_FILE
from tandem.manifest import Manifest

THREADS, SHARED = 128, 32  # of a launch
_POINTED = {"*i32": np.int32, "*i64": np.int64, "*fp32": np.float32, "*fp64": np.float64}
_TYPES = {"tensor(int64)": np.int64, "tensor(float)": np.float32, "tensor(float16)": np.float16}
Profiles = Sequence[dict[str, tuple[int, ...]]]  # for each profile the greatest value of each free dimension


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815
    cudaMemcpyDeviceToDevice = 3  # noqa: N815


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1  # noqa: N815


class Attribute(IntEnum):
    cudaDevAttrComputeCapabilityMajor = 75  # noqa: N815
    cudaDevAttrComputeCapabilityMinor = 76  # noqa: N815


class Cuda:
    """The CUDA runtime. Work of the stream is done when it is waited for."""

    cudaMemcpyKind, cudaDeviceAttr, cudaStreamCaptureMode = CopyKind, Attribute, CaptureMode  # noqa: N815

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self._capability = capability
        self._memory: dict[int, tuple[Any, int, bool]] = {}  # by address: what holds it, its bytes, on the device
        self.stream: list[Callable[[], None]] = []
        self.capture: list[Callable[[], None]] | None = None  # where work goes instead while a graph is recorded
        self.executable: dict[int, list[Callable[[], None]]] = {}
        self._graphs: list[list[Callable[[], None]]] = []
        self.launches = 0
        self.recordable = True  # False: like a plan that waits for the device within a run
        self.device = 0  # where everything of the test belongs
        self._current = threading.local()

    def cudaSetDevice(self, device: int) -> tuple[int]:  # noqa: N802
        self._current.device = device
        return (0,)

    def require_device(self) -> None:
        """The calling thread has chosen the device."""
        found = getattr(self._current, "device", 0)
        assert found == self.device, f"device {found}, not {self.device}"

    def _allocate(self, size: int, on_device: bool) -> tuple[int, int]:
        self.require_device()
        memory = (ctypes.c_ubyte * size)()
        ctypes.memset(memory, 255, size)  # NaN
        self._memory[ctypes.addressof(memory)] = (memory, size, on_device)
        return 0, ctypes.addressof(memory)

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        return self._allocate(size, True)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == 0
        return self._allocate(size, False)

    def _free(self, address: int, on_device: bool) -> tuple[int]:
        self.require(address, 1, on_device)
        assert not self.stream, "what is on the stream may need it"
        del self._memory[address]
        return (0,)

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        return self._free(address, True)

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        return self._free(address, False)

    def view(self, address: int, dtype: type) -> npt.NDArray[Any]:
        """Memory of the device from an address to the end of what it was allocated with."""
        for start, (_, size, is_device) in self._memory.items():
            if start <= address < start + size:
                assert is_device, "the wrong side of the bus"
                count = (start + size - address) // np.dtype(dtype).itemsize
                return np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(dtype) * count).from_address(address))
        raise AssertionError(f"{address:#x} was not allocated")

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        return 0, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        self._on(stream)
        for work in self.stream:
            work()
        self.stream.clear()
        return (0,)

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[int]:  # noqa: N802
        self.require(address, count, True)
        return self._later(stream, lambda: ctypes.memset(address, value, count))

    def cudaMemcpyAsync(self, to: int, source: int, count: int, kind: CopyKind, stream: int) -> tuple[int]:  # noqa: N802
        self.require(to, count, kind != CopyKind.cudaMemcpyDeviceToHost)
        self.require(source, count, kind != CopyKind.cudaMemcpyHostToDevice)
        return self._later(stream, lambda: ctypes.memmove(to, source, count))

    def cudaMemcpy2DAsync(  # noqa: N802
        self, to: int, to_pitch: int, source: int, pitch: int, width: int, height: int, kind: CopyKind, stream: int
    ) -> tuple[int]:
        assert width <= min(to_pitch, pitch)
        assert kind == CopyKind.cudaMemcpyDeviceToDevice
        for line in range(height):
            self.require(to + line * to_pitch, width, True)
            self.require(source + line * pitch, width, True)

        def copy() -> None:
            for line in range(height):
                ctypes.memmove(to + line * to_pitch, source + line * pitch, width)

        return self._later(stream, copy)

    def cudaDeviceGetAttribute(self, attribute: Attribute, device: int) -> tuple[int, int]:  # noqa: N802
        assert device == self.device
        return 0, self._capability[attribute - Attribute.cudaDevAttrComputeCapabilityMajor]

    def require(self, address: int, count: int, on_device: bool) -> None:
        """The bytes lie within one allocation, on the side that is meant."""
        for start, (_, size, is_device) in self._memory.items():
            if start <= address and address + count <= start + size:
                assert is_device == on_device, "the wrong side of the bus"
                return
        raise AssertionError(f"{count} bytes at {address:#x} were not allocated")

    def _on(self, stream: int) -> None:
        assert stream == 77, "not the stream that was made"
        self.require_device()

    def _later(self, stream: int, work: Callable[[], object]) -> tuple[int]:
        self._on(stream)
        (self.stream if self.capture is None else self.capture).append(lambda: (work(), None)[1])
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[int]:  # noqa: N802
        self._on(stream)
        assert self.capture is None
        assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
        self.capture = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        self._on(stream)
        if self.capture is None:  # something could not be recorded
            return 901, 0
        self._graphs.append(self.capture)
        self.capture = None
        return 0, len(self._graphs) - 1

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:  # noqa: N802
        assert flags == 0
        self.executable[1000 + graph] = self._graphs[graph]
        return 0, 1000 + graph

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        self._graphs[graph] = []
        return (0,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        del self.executable[graph]
        return (0,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        self.launches += 1
        return self._later(stream, lambda: [work() for work in self.executable[graph]])


class Driver:
    """The CUDA driver. A module is the name of a kernel, which the Triton language's interpreter runs.

    Tests that launch one must have chosen the interpreter: `device_kernels.require(interpreted=True)`.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.launched: list[tuple[str, int]] = []  # names and numbers of programs
        # Called behind each kernel, with its name and arguments.
        self.meddle: Callable[[str, Sequence[Any]], None] = lambda name, values: None

    def cuModuleLoadData(self, image: bytes) -> tuple[int, str]:  # noqa: N802
        return 0, image.decode()

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:  # noqa: N802
        assert name == f"{module}_kernel".encode()
        return 0, module

    def cuLaunchKernel(  # noqa: N802
        self,
        function: str,
        *grid_and_block: int | Any,
    ) -> tuple[int]:
        *sizes, shared, stream, (values, types), extra = grid_and_block
        programs, *ones = sizes
        assert ones == [1, 1, THREADS, 1, 1]
        assert (shared, extra) == (SHARED, 0)
        kernel = device_kernels.kernels()[function]
        kinds = kernel.types.split()
        assert list(values[len(kinds) :]) == [0, 0]
        assert [kind.startswith("*") for kind in kinds] == [one is ctypes.c_void_p for one in types[: len(kinds)]]
        self.launched.append((function, programs))

        def run() -> None:
            arguments = [
                torch.from_numpy(self._cuda.view(value, _POINTED[kind])) if kind in _POINTED else value
                for kind, value in zip(kinds, values, strict=False)
            ]
            kernel.function[(programs,)](*arguments, **kernel.constants)
            self.meddle(function, values)

        return self._cuda._later(stream, run)


def plan_manifest(length: int) -> Manifest:
    """Of a tiny model's plan for texts of so many tokens."""
    texts = ("kind", "name", "architecture", "source", "source_sha256", "tokenizer_sha256", "weights", "build_key")
    return Manifest(
        **dict.fromkeys(texts, ""),
        activations="f32",
        kv_cache="f32",
        dynamic_quantization_group=0,
        runtime="tensorrt",
        runtime_version="11.1.0.0",
        vocab_size=VOCABULARY,
        context_length=length,
        bos_token_id=None,
        eos_token_ids=(),
        add_bos=False,
        files={},
    )


def write_kernels(directory: Path) -> None:
    """What build_engines.device_kernels writes, for `Driver`."""
    facts = {}
    for name, kernel in device_kernels.kernels().items():
        (directory / f"{name}.cubin").write_text(name)
        launch = {"entry": f"{name}_kernel", "scratch": 2, "threads": THREADS, "shared": SHARED}
        files = {"file": f"{name}.cubin", "block": device_kernels.BLOCK, "arguments": kernel.types.split()}
        facts[name] = {**files, **launch}
    (directory / KERNELS_FILE).write_text(json.dumps(facts))


class Context:
    """Can be recorded only if it was run since a shape or an address was set, as with TensorRT."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._limits: dict[str, int] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._is_new = True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 77
        self._limits = self._engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._limits is not None, "no profile was chosen"
        for size, free in zip(shape, self._engine.inputs[name].shape, strict=True):
            assert 1 <= size <= self._limits[free] if isinstance(free, str) else size == free, f"{name}: {shape}"
        self._shapes[name], self._is_new = tuple(shape), True
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name], self._is_new = address, True
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        free: dict[str, int] = {}
        for name, port in self._engine.inputs.items():
            for size, dimension in zip(self._shapes[name], port.shape, strict=True):
                if isinstance(dimension, str):
                    assert free.setdefault(dimension, size) == size, f"{name} has {size} for {dimension}"
        binding = self._engine.session.io_binding()
        for bind, ports in ((binding.bind_input, self._engine.inputs), (binding.bind_output, self._engine.outputs)):
            for name, port in ports.items():
                shape = tuple(free.get(dimension, dimension) for dimension in port.shape)
                dtype = np.dtype(_TYPES[port.type])
                address = self._addresses[name]
                self._engine.cuda.require(address, int(np.prod(shape)) * dtype.itemsize, True)
                if name.startswith("new_"):
                    assert address == self._addresses[name.removeprefix("new_")], "the cache is not updated in place"
                bind(name, "cpu", 0, dtype, shape, address)
        cuda = self._engine.cuda
        if cuda.capture is not None and (self._is_new or not cuda.recordable):
            cuda.capture = None
            return False
        self._is_new = False
        cuda._later(stream, lambda: self._engine.session.run_with_iobinding(binding))
        return True


class Engine:
    """A plan: the graph it was made of, and its profiles."""

    def __init__(self, graph: Path, profiles: Profiles, cuda: Cuda) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = {port.name: port for port in self.session.get_outputs()}
        self.profiles, self.cuda = profiles, cuda
        self._ports = [*self.inputs.values(), *self.outputs.values()]
        self.num_io_tensors, self.num_optimization_profiles = len(self._ports), len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return str(self._ports[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def get_tensor_shape(self, name: str) -> list[int]:
        port = self.inputs.get(name) or self.outputs[name]
        return [-1 if isinstance(size, str) else size for size in port.shape]

    def get_tensor_dtype(self, name: str) -> str:
        return str((self.inputs.get(name) or self.outputs[name]).type)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        most = self.profiles[index]
        shape = [most[size] if isinstance(size, str) else size for size in self.inputs[name].shape]
        return [[], [], shape]

    def create_execution_context(self) -> Context:
        return Context(self)


def tensorrt(profiles: Profiles, cuda: Cuda) -> Any:
    """The module `tensorrt`; its plans hold the path of an ONNX graph."""

    class Runtime:
        def __init__(self, logger: object) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            path = Path(plan.decode())
            return Engine(path, profiles, cuda) if path.is_file() else None

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None: ...

    return SimpleNamespace(
        __version__="11.1.0.0",
        Logger=Logger,
        Runtime=Runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda kind: _TYPES[kind],
    )
