"""TensorRT as the session of the slot engine: a plan, and device memory that it works on in place.

Everything happens on one stream. Inputs go through pinned memory to the device, logits and features come back the same
way; the caches never leave it. TensorRT's cache update wants the old and the new cache at one address, which is that of
the first slot of the run.

Runs of the same shapes over the same slots come again and again while streams decode. The second such run is recorded
as a CUDA graph, copies included, and the later ones are one launch of that.

**Not run on a GPU yet.** Tests run this file on a stand-in for the device (tests/support/device_stand_in.py), which
computes with ONNX Runtime what the bound addresses say, and compare the names and arguments of all calls with
NVIDIA's own bindings (tests/unit/test_tensorrt_api.py).
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem import tensorrt_library

PLAN_FACTS = "plan.json"  # what it was compiled for
MAX_GRAPHS = 64  # recorded runs that are kept, the least recently used go first
_REBUILD = "build the engine again on this machine"

log = logging.getLogger(__name__)


_Feeds = Mapping[str, npt.NDArray[Any]]
_Key = tuple[int, tuple[tuple[int, ...], ...]]  # first slot, and shapes of the inputs: what a run's work depends on


@dataclass(frozen=True, slots=True)
class _Staged:
    """A tensor on the device and its pinned copy on the host, of the greatest size that the plan allows."""

    device: int
    pinned: int
    host: npt.NDArray[Any]  # the pinned memory, flat


@dataclass(frozen=True, slots=True)
class _Profile:
    """One optimization profile with its execution context, and the greatest shape of each input."""

    context: Any
    most: Mapping[str, Sequence[int]]

    def takes(self, feeds: _Feeds) -> bool:
        return all(
            size <= limit
            for name, value in feeds.items()
            for size, limit in zip(value.shape, self.most[name], strict=True)
        )


class TensorRtSession:
    """Implements `tandem.engines.session.Session`."""

    wants_few_shapes = True

    def __init__(self, plan: Path, megabytes: int, device: int = 0, libraries: tuple[Any, Any] | None = None) -> None:
        """Load a plan, with as many slots as fit into `megabytes` and as it takes rows.

        Args:
            plan: of a graph of the contract.
            megabytes: device memory for K and V.
            device: number of the GPU.
            libraries: the modules `tensorrt` and `cuda.bindings.runtime`, if not those that are installed.

        Raises:
            ImportError: TensorRT or CUDA is not installed.
            ValueError: the plan is for another GPU or TensorRT, or not even two slots fit.
        """
        trt, self._cuda = libraries or _libraries()
        self._device = device
        self._use_device()
        self._check_device(plan)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))  # must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise ValueError(f"TensorRT {trt.__version__} does not take {plan}: {_REBUILD}")
        self._engine = engine
        self._stream = self._call("cudaStreamCreate")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        caches = [name for name in inputs if name.startswith(("keys.", "values."))]
        self._fed = [name for name in inputs if name not in caches]
        self._profiles = [self._profile(engine, index, inputs) for index in range(engine.num_optimization_profiles)]
        _, self._heads, self.positions, self._size = engine.get_tensor_shape(caches[0])
        self._item = np.dtype(trt.nptype(engine.get_tensor_dtype(caches[0]))).itemsize
        slot = self._slot_bytes
        rows = max(profile.most[caches[0]][0] for profile in self._profiles)
        self.slots = min(megabytes * 2**20 // (len(caches) * slot), rows)
        if self.slots < 2:
            raise ValueError(
                f"kv_cache_mb {megabytes} is too little: two slots of {self.positions} positions of this model take "
                f"{-(-2 * len(caches) * slot // 2**20)}; an engine built with a shorter --max-length needs less"
            )
        self._caches = {name: self._call("cudaMalloc", self.slots * slot) for name in caches}
        for address in self._caches.values():
            self._call("cudaMemsetAsync", address, 0, self.slots * slot, self._stream)  # none of it is NaN
        types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        sizes = {name: max(int(np.prod(profile.most[name])) for profile in self._profiles) for name in self._fed}
        self._inputs = {name: self._stage(sizes[name], types[name]) for name in self._fed}
        answers = [name for name in names if name not in inputs and not name.startswith("new_")]
        self._widths = {name: int(engine.get_tensor_shape(name)[1]) for name in answers}
        self._outputs = {
            name: self._stage(sizes[_counted(name)] * width, types[name]) for name, width in self._widths.items()
        }
        for profile in self._profiles:
            for name, staged in (self._inputs | self._outputs).items():
                profile.context.set_tensor_address(name, staged.device)
        self._graphs: OrderedDict[_Key, Any] = OrderedDict()  # None: such a run was seen once
        self._records = True

    def run(self, feeds: _Feeds, first: int) -> Mapping[str, npt.NDArray[Any]]:
        """See `Session.run`.

        Raises:
            ValueError: no profile of the plan takes so many tokens.
            RuntimeError: TensorRT or CUDA failed.
        """
        self._use_device()
        given = {name: feeds[name] for name in self._fed}
        profile = next((one for one in self._profiles if one.takes(given)), None)
        if profile is None:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in given.items())
            raise ValueError(f"the plan takes no step of {shapes}: lower max_step_tokens, or build it for longer steps")
        for name, value in given.items():
            self._inputs[name].host[: value.size] = value.ravel()
        key = (first, tuple(value.shape for value in given.values()))
        graph = self._graphs.get(key)
        if graph is None:
            self._bind(profile.context, given, first)
            self._enqueue(profile.context, given)
            if self._records:
                self._record(key, profile.context, given)
        else:
            self._graphs.move_to_end(key)
            self._call("cudaGraphLaunch", graph, self._stream)
        self._call("cudaStreamSynchronize", self._stream)
        found = {}
        for name, width in self._widths.items():
            rows = len(given[_counted(name)])
            found[name] = self._outputs[name].host[: rows * width].reshape(rows, width)
        return found

    def _bind(self, context: Any, given: _Feeds, first: int) -> None:
        """Tell the context the shapes of a run, and where its slots are."""
        for name, value in given.items():
            context.set_input_shape(name, value.shape)
        rows = len(given["write_index"])
        for name, base in self._caches.items():
            address = base + first * self._slot_bytes
            context.set_input_shape(name, (rows, self._heads, self.positions, self._size))
            context.set_tensor_address(name, address)
            context.set_tensor_address(f"new_{name}", address)

    def _enqueue(self, context: Any, given: _Feeds) -> None:
        """Put a run on the stream, from the pinned inputs to the pinned outputs."""
        to_device = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, value in given.items():
            staged = self._inputs[name]
            self._call("cudaMemcpyAsync", staged.device, staged.pinned, value.nbytes, to_device, self._stream)
        if not context.execute_async_v3(int(self._stream)):
            raise RuntimeError("TensorRT could not run the step; its log says why")
        for name, width in self._widths.items():
            staged = self._outputs[name]
            size = len(given[_counted(name)]) * width * staged.host.itemsize
            self._call("cudaMemcpyAsync", staged.pinned, staged.device, size, to_host, self._stream)

    def _record(self, key: _Key, context: Any, given: _Feeds) -> None:
        """Keep a run as a graph, the second time that it comes; it has just been put on the stream as it is.

        TensorRT asks for that: what it does once for new shapes cannot be recorded. A plan may hold something that
        never can: then no more is tried.
        """
        if key not in self._graphs:
            self._graphs[key] = None
        else:
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaStreamBeginCapture", self._stream, mode)
            try:
                try:
                    self._enqueue(context, given)
                finally:
                    recorded = self._call("cudaStreamEndCapture", self._stream)
                self._graphs[key] = self._call("cudaGraphInstantiate", recorded, 0)
                self._call("cudaGraphDestroy", recorded)
            except RuntimeError as error:
                self._records = False
                log.warning("steps are not recorded as CUDA graphs: %s", error)
        self._graphs.move_to_end(key)
        while len(self._graphs) > MAX_GRAPHS:
            _, graph = self._graphs.popitem(last=False)
            if graph is not None:
                self._call("cudaGraphExecDestroy", graph)

    def copy(self, source: int, target: int, positions: int) -> None:
        """See `Session.copy`."""
        self._use_device()
        pitch, slot = self.positions * self._size * self._item, self._slot_bytes
        width = positions * self._size * self._item
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for base in self._caches.values():
            here, there = base + source * slot, base + target * slot
            self._call("cudaMemcpy2DAsync", there, pitch, here, pitch, width, self._heads, kind, self._stream)

    @property
    def _slot_bytes(self) -> int:
        return int(self._heads * self.positions * self._size * self._item)

    def _use_device(self) -> None:
        """CUDA remembers the device by thread, and steps come from several."""
        self._call("cudaSetDevice", self._device)

    def _check_device(self, plan: Path) -> None:
        built = json.loads((plan.parent / PLAN_FACTS).read_text(encoding="utf-8"))["compute_capability"]
        found = compute_capability(self._cuda, self._device)
        if found != built:
            raise ValueError(f"{plan} is for compute capability {built}, and this GPU has {found}: {_REBUILD}")

    def _profile(self, engine: Any, index: int, inputs: Sequence[str]) -> _Profile:
        context = engine.create_execution_context()
        if not context.set_optimization_profile_async(index, int(self._stream)):
            raise ValueError(f"TensorRT does not take profile {index} of its plan: {_REBUILD}")
        self._call("cudaStreamSynchronize", self._stream)
        return _Profile(context, {name: tuple(engine.get_tensor_profile_shape(name, index)[2]) for name in inputs})

    def _stage(self, size: int, dtype: np.dtype[Any]) -> _Staged:
        count = size * dtype.itemsize
        pinned = int(self._call("cudaHostAlloc", count, 0))
        memory = (ctypes.c_byte * count).from_address(pinned)
        return _Staged(int(self._call("cudaMalloc", count)), pinned, np.frombuffer(memoryview(memory), dtype))

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(self._cuda, name, *arguments)


def _counted(output: str) -> str:
    """The input that has a row for each row of an output."""
    return "positions" if output == "passed" else "wanted"


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; returns its result.

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


def _libraries() -> tuple[Any, Any]:
    from cuda.bindings import runtime

    return tensorrt_library.load(), runtime
