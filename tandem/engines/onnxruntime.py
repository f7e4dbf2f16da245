"""ONNX Runtime on CPU as the session of the slot engine: the KV memory is bound in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tandem.engines.session import GRAPH
from tandem.sampling import Choice

MODEL_FILE = f"{GRAPH}.onnx"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ERRORS_ONLY = 3


class OnnxRuntimeSession:
    """Implements `tandem.engines.session.Session`."""

    wants_few_shapes = False
    chooses = False

    def __init__(self, graph: Path, megabytes: int, threads: int | None = None) -> None:
        """Load a graph of the contract, with as many slots as fit into `megabytes`.

        Raises:
            ValueError: not even two slots fit.
        """
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.enable_mem_pattern = False  # it pays for shapes that come again, and each step has others
        options.intra_op_num_threads = threads or 0
        # Without VNNI the processor adds products of UINT8 and INT8 in 16 bits, where they saturate; UINT8 both do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the server and its clients need CPU
        self._session = ort.InferenceSession(
            str(graph),
            options,
            providers=["CPUExecutionProvider"],
            # A MatMul with int8 weights that became a Gemm would be computed in full precision, dequantized each time.
            disabled_optimizers=["MatMulAddFusion"],
        )
        inputs = self._session.get_inputs()
        caches = [port for port in inputs if port.name.startswith(("keys.", "values."))]
        self._inputs = [port.name for port in inputs if port not in caches]
        heads, self.positions, size = caches[0].shape[1:]
        dtype = _TYPES[caches[0].type]
        slot_bytes = len(caches) * heads * self.positions * size * np.dtype(dtype).itemsize
        self.slots = megabytes * 2**20 // slot_bytes
        if self.slots < 2:
            raise ValueError(
                f"kv_cache_mb {megabytes} is too little: two slots of {self.positions} positions of this model take "
                f"{-(-2 * slot_bytes // 2**20)}; an engine built with a shorter --max-length needs less"
            )
        self._caches = {port.name: np.empty((self.slots, heads, self.positions, size), dtype) for port in caches}
        for cache in self._caches.values():
            cache.fill(0)  # all of its memory is there from the start, and none of it is NaN
        self._bindings: dict[tuple[int, int], Any] = {}  # by slots
        outputs = [port for port in self._session.get_outputs() if not port.name.startswith("new_")]
        self._outputs = {port.name: (port.shape[1], _TYPES[port.type]) for port in outputs}
        self._answers = {name: np.empty((0, size), dtype) for name, (size, dtype) in self._outputs.items()}

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], first: int, choices: Sequence[Choice] | None = None
    ) -> Mapping[str, npt.NDArray[Any]]:
        """See `Session.run`; without choices."""
        assert choices is None
        binding = self._binding(first, len(feeds["write_index"]))
        for name in self._inputs:
            value = feeds[name]
            binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        found = {}
        for name, (size, dtype) in self._outputs.items():
            rows = len(feeds["positions" if name == "passed" else "wanted"])
            if len(self._answers[name]) < rows:
                self._answers[name] = np.empty((rows, size), dtype)
            found[name] = self._answers[name][:rows]
            binding.bind_output(name, "cpu", 0, dtype, (rows, size), self._answers[name].ctypes.data)
        self._session.run_with_iobinding(binding)
        return found

    def _binding(self, first: int, count: int) -> Any:
        """The caches of a run of slots, as inputs and as outputs: the same memory, so that nothing is copied."""
        if (first, count) not in self._bindings:
            binding = self._session.io_binding()
            for name, cache in self._caches.items():
                part = cache[first : first + count]
                place = ("cpu", 0, cache.dtype, part.shape, part.ctypes.data)
                binding.bind_input(name, *place)
                binding.bind_output(f"new_{name}", *place)
            self._bindings[first, count] = binding
        return self._bindings[first, count]

    def copy(self, source: int, target: int, positions: int) -> None:
        """See `Session.copy`."""
        for cache in self._caches.values():
            cache[target, :, :positions] = cache[source, :, :positions]
