"""TensorRT as the session of the slot engine: a plan, and device memory that it works on in place.

Everything happens on one stream. Inputs go through pinned memory to the device, and features come back the same way.
So do logits where tokens are not chosen on the device; the caches never leave it. TensorRT's cache update wants the old
and the new cache at one address, which is that of the first slot of the run.

Runs of the same shapes over the same slots come again and again while streams decode. The second such run is recorded
as a CUDA graph, copies included, and the later ones are one launch of that. The choice of tokens follows it.

**Not run on a GPU yet.** Tests run this file on a stand-in for the device (tests/support/device_stand_in.py), which
computes with ONNX Runtime what the bound addresses say, and compare the names and arguments of all calls with
NVIDIA's own bindings (tests/unit/test_tensorrt_api.py).
"""

from __future__ import annotations

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
from tandem.engines.cuda_device import CudaDevice, compute_capability
from tandem.engines.device_choice import KERNELS_FILE, DeviceChoice
from tandem.sampling import Choice

PLAN_FACTS = "plan.json"  # what it was compiled for
MAX_GRAPHS = 64  # recorded runs that are kept, the least recently used go first
_REBUILD = "build the engine again on this machine"

log = logging.getLogger(__name__)


_Feeds = Mapping[str, npt.NDArray[Any]]
# First slot, whether logits are wanted, and the shapes of the inputs: what a run's work depends on.
_Key = tuple[int, bool, tuple[tuple[int, ...], ...]]


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

    def __init__(
        self, plan: Path, megabytes: int, device: int = 0, libraries: tuple[Any, Any, Any] | None = None
    ) -> None:
        """Load a plan, with as many slots as fit into `megabytes` and as it takes rows.

        Args:
            plan: of a graph of the contract.
            megabytes: device memory for K and V.
            device: number of the GPU.
            libraries: the modules `tensorrt`, `cuda.bindings.runtime` and `cuda.bindings.driver`, if not those that are
                installed.

        Raises:
            ImportError: TensorRT or CUDA is not installed.
            ValueError: the plan is for another GPU or TensorRT, or not even two slots fit.
        """
        trt, self._cuda, driver = libraries or _libraries()
        self._gpu = CudaDevice(self._cuda, device)
        self._call = self._gpu.call
        self._check_device(plan, device)
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))  # must outlive the engine
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise ValueError(f"TensorRT {trt.__version__} does not take {plan}: {_REBUILD}")
        self._engine = engine
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
            self._call("cudaMemsetAsync", address, 0, self.slots * slot, self._gpu.stream)  # none of it is NaN
        types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        sizes = {name: max(int(np.prod(profile.most[name])) for profile in self._profiles) for name in self._fed}
        self._inputs = {name: self._gpu.stage(sizes[name], types[name]) for name in self._fed}
        answers = [name for name in names if name not in inputs and not name.startswith("new_")]
        self._widths = {name: int(engine.get_tensor_shape(name)[1]) for name in answers}
        self._outputs = {
            name: self._gpu.stage(sizes[_counted(name)] * width, types[name]) for name, width in self._widths.items()
        }
        for profile in self._profiles:
            for name, staged in (self._inputs | self._outputs).items():
                profile.context.set_tensor_address(name, staged.device)
        self._graphs: OrderedDict[_Key, Any] = OrderedDict()  # None: such a run was seen once
        self._records = True
        self._choice = self._load_choice(plan.parent, driver, sizes["wanted"]) if "logits" in answers else None

    @property
    def chooses(self) -> bool:
        """See `Session.chooses`."""
        return self._choice is not None

    def run(self, feeds: _Feeds, first: int, choices: Sequence[Choice] | None = None) -> Mapping[str, npt.NDArray[Any]]:
        """See `Session.run`.

        Raises:
            ValueError: no profile of the plan takes so many tokens.
            RuntimeError: TensorRT or CUDA failed.
        """
        self._gpu.use()
        given = {name: feeds[name] for name in self._fed}
        profile = next((one for one in self._profiles if one.takes(given)), None)
        if profile is None:
            shapes = ", ".join(f"{name} {value.shape}" for name, value in given.items())
            raise ValueError(f"the plan takes no step of {shapes}: lower max_step_tokens, or build it for longer steps")
        for name, value in given.items():
            self._inputs[name].host[: value.size] = value.ravel()
        fetched = [name for name in self._widths if choices is None or name != "logits"]
        key = (first, choices is None, tuple(value.shape for value in given.values()))
        graph = self._graphs.get(key)
        if graph is None:
            self._bind(profile.context, given, first)
            self._enqueue(profile.context, given, fetched)
            if self._records:
                self._record(key, profile.context, given, fetched)
        else:
            self._graphs.move_to_end(key)
            self._call("cudaGraphLaunch", graph, self._gpu.stream)
        found: dict[str, npt.NDArray[Any]] = {}
        if choices is not None:
            assert self._choice is not None
            logits = self._outputs["logits"].device
            found["tokens"], found["log_probs"] = self._choice.choose(logits, choices)
        self._gpu.wait()
        for name in fetched:
            rows, width = len(given[_counted(name)]), self._widths[name]
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

    def _enqueue(self, context: Any, given: _Feeds, fetched: Sequence[str]) -> None:
        """Put a run on the stream, from the pinned inputs to those of the pinned outputs that are wanted."""
        for name, value in given.items():
            self._gpu.send(self._inputs[name], value.nbytes)
        if not context.execute_async_v3(int(self._gpu.stream)):
            raise RuntimeError("TensorRT could not run the step; its log says why")
        for name in fetched:
            staged = self._outputs[name]
            self._gpu.fetch(staged, len(given[_counted(name)]) * self._widths[name] * staged.host.itemsize)

    def _record(self, key: _Key, context: Any, given: _Feeds, fetched: Sequence[str]) -> None:
        """Keep a run as a graph, the second time that it comes; it has just been put on the stream as it is.

        TensorRT asks for that: what it does once for new shapes cannot be recorded. A plan may hold something that
        never can: then no more is tried.
        """
        if key not in self._graphs:
            self._graphs[key] = None
        else:
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._call("cudaStreamBeginCapture", self._gpu.stream, mode)
            try:
                try:
                    self._enqueue(context, given, fetched)
                finally:
                    recorded = self._call("cudaStreamEndCapture", self._gpu.stream)
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
        self._gpu.use()
        pitch, slot = self.positions * self._size * self._item, self._slot_bytes
        width = positions * self._size * self._item
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        for base in self._caches.values():
            here, there = base + source * slot, base + target * slot
            self._call("cudaMemcpy2DAsync", there, pitch, here, pitch, width, self._heads, kind, self._gpu.stream)

    @property
    def _slot_bytes(self) -> int:
        return int(self._heads * self.positions * self._size * self._item)

    def _load_choice(self, directory: Path, driver: Any, rows: int) -> DeviceChoice | None:
        """What chooses tokens here; None if they are to be chosen on the CPU."""
        if not (directory / KERNELS_FILE).is_file():
            log.info("tokens are chosen on the CPU: the engine was built without kernels for that")
            return None
        try:
            return DeviceChoice(directory, self._gpu, driver, self._widths["logits"], rows)
        except RuntimeError as error:
            log.error("tokens are chosen on the CPU: %s", error)
            return None

    def _check_device(self, plan: Path, device: int) -> None:
        built = json.loads((plan.parent / PLAN_FACTS).read_text(encoding="utf-8"))["compute_capability"]
        found = compute_capability(self._cuda, device)
        if found != built:
            raise ValueError(f"{plan} is for compute capability {built}, and this GPU has {found}: {_REBUILD}")

    def _profile(self, engine: Any, index: int, inputs: Sequence[str]) -> _Profile:
        context = engine.create_execution_context()
        if not context.set_optimization_profile_async(index, int(self._gpu.stream)):
            raise ValueError(f"TensorRT does not take profile {index} of its plan: {_REBUILD}")
        self._call("cudaStreamSynchronize", self._gpu.stream)
        return _Profile(context, {name: tuple(engine.get_tensor_profile_shape(name, index)[2]) for name in inputs})


def _counted(output: str) -> str:
    """The input that has a row for each row of an output."""
    return "positions" if output == "passed" else "wanted"


def _libraries() -> tuple[Any, Any, Any]:
    from cuda.bindings import driver, runtime

    return tensorrt_library.load(), runtime, driver
