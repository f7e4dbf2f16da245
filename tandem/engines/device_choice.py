"""The choice of tokens on the GPU, from logits that a plan left there: `tandem.sampling.choose` without their way to
the host, which for a step of many drafts is 100 MB.

The kernels are those of `tandem.device`, compiled when the plan was (build_engines.device_kernels), so that a server
needs neither their compiler nor torch. When they are loaded, they must choose as the CPU does, or they are not used.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem import sampling
from tandem.engines.cuda_device import CudaDevice, Staged, call
from tandem.sampling import Choice, Floats, Int32s, SamplingParams, SamplingState, edits, kernel_arguments

KERNELS_FILE = "kernels.json"  # what a launch of each kernel needs to know
CHUNK = 64  # rows of a launch; each needs 12 bytes of memory for each token of the vocabulary
_SCALARS = {"i32": ctypes.c_int32}
_CHECKED = (
    SamplingParams(log_probs=True),
    SamplingParams(temperature=0.8, seed=1),
    SamplingParams(temperature=1.3, top_k=9, seed=2, log_probs=True),
    SamplingParams(temperature=0.7, top_p=0.6, min_p=0.02, seed=2**64 - 1),
    SamplingParams(temperature=0.9, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, seed=3),
    SamplingParams(min_length=9, end_ids=(0, 1), bad_words=((2,),)),
)


class DeviceChoice:
    """Chooses tokens on one GPU."""

    def __init__(self, directory: Path, gpu: CudaDevice, driver: Any, vocab: int, rows: int) -> None:
        """Load the kernels, and see that they choose as the CPU does.

        Args:
            directory: of the plan, with `KERNELS_FILE`.
            gpu: where the logits are.
            driver: the module `cuda.bindings.driver`.
            vocab: tokens in a row of logits.
            rows: at most, of a choice.

        Raises:
            RuntimeError: CUDA failed, or a choice is another than the CPU's.
        """
        self._gpu, self._driver, self._vocab = gpu, driver, vocab
        self._kernels = json.loads((directory / KERNELS_FILE).read_text(encoding="utf-8"))
        self._modules, self._functions = [], {}
        for name, kernel in self._kernels.items():
            module = call(driver, "cuModuleLoadData", (directory / kernel["file"]).read_bytes())
            self._modules.append(module)  # must outlive the function
            self._functions[name] = call(driver, "cuModuleGetFunction", module, kernel["entry"].encode())
        chunk = min(CHUNK, rows)
        self._keys, self._masses = (gpu.call("cudaMalloc", chunk * vocab * size) for size in (4, 8))
        self._tokens, self._log_probs = (gpu.stage(rows, np.dtype(kind)) for kind in (np.int32, np.float32))
        self._staged: dict[str, Staged] = {}
        self._check(min(len(_CHECKED), rows))

    def choose(self, logits: int, choices: Sequence[Choice]) -> tuple[Int32s, Floats]:
        """A token for each row of logits.

        Args:
            logits: address of float32 [len(choices), vocab] on the device, or of what the stream is about to write
                there; changed where penalties or masks say so.
            choices: what each row is for.

        Returns:
            As `tandem.sampling.choose`.
        """
        count, vocab = len(choices), self._vocab
        if count:
            self._edit(logits, choices)
            reals, integers, seeds = (self._put(*item) for item in kernel_arguments(choices)._asdict().items())
            tokens, log_probs = self._tokens.device, self._log_probs.device
            for start in range(0, count, CHUNK):
                rows = (
                    base + start * size for base, size in ((logits, 4 * vocab), (reals, 24), (integers, 24), (seeds, 8))
                )
                answers = (base + start * 4 for base in (tokens, log_probs))
                launched = min(CHUNK, count - start)
                self._launch("choose", launched, *rows, self._keys, self._masses, *answers, vocab, vocab)
            for staged in (self._tokens, self._log_probs):
                self._gpu.fetch(staged, 4 * count)
            self._gpu.wait()
        return self._tokens.host[:count].copy(), self._log_probs.host[:count].copy()

    def _edit(self, logits: int, choices: Sequence[Choice]) -> None:
        """Apply penalties and masks."""
        changes = [edits(choice, self._vocab) for choice in choices]
        sizes = [len(change.tokens) for change in changes]
        if not (entries := sum(sizes)):
            return
        columns = {
            "rows": np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
            "edited": np.concatenate([change.tokens for change in changes]),
            "counts": np.concatenate([change.counts for change in changes]),
            "penalties": np.stack([change.penalties for change in changes]),
        }
        addresses = [self._put(*item) for item in columns.items()]
        programs = -(-entries // self._kernels["penalize"]["block"])
        self._launch("penalize", programs, logits, *addresses, entries, self._vocab)

    def _put(self, name: str, values: npt.NDArray[Any]) -> int:
        """Put a copy of an array on the stream; returns its address. The last choice was waited for."""
        staged = self._staged.get(name)
        if staged is None or len(staged.host) < values.size:
            if staged is not None:
                self._gpu.wait()  # a copy from it may still be under way
                self._gpu.release(staged)
            staged = self._staged[name] = self._gpu.stage(1 << (values.size - 1).bit_length(), values.dtype)
        staged.host[: values.size] = values.ravel()
        self._gpu.send(staged, values.nbytes)
        return staged.device

    def _launch(self, name: str, programs: int, *arguments: int) -> None:
        kernel = self._kernels[name]
        types = [_SCALARS.get(kind, ctypes.c_void_p) for kind in kernel["arguments"]]
        # Behind its arguments a kernel takes addresses of scratch memory, of which these need none.
        extra = kernel["scratch"]
        values = ((*arguments, *[0] * extra), (*types, *[ctypes.c_void_p] * extra))
        function, threads, stream = self._functions[name], kernel["threads"], int(self._gpu.stream)
        shared = kernel["shared"]
        call(self._driver, "cuLaunchKernel", function, programs, 1, 1, threads, 1, 1, shared, stream, values, 0)

    def _check(self, rows: int) -> None:
        """Raise `RuntimeError` if a choice is not the CPU's."""
        source = np.random.default_rng(0)
        logits = (source.normal(size=(rows, self._vocab)) * 3).astype(np.float32)
        choices = []
        for params in _CHECKED[:rows]:
            state = SamplingState(params, 4)
            state.append(source.integers(0, self._vocab, 7).tolist())
            choices.append(Choice(state, 7))
        address = self._put("checked", logits)
        found = self.choose(address, choices)
        self._gpu.release(self._staged.pop("checked"))
        for ours, theirs in zip(found, sampling.choose(logits, choices), strict=True):
            if not np.array_equal(ours, theirs):
                raise RuntimeError(f"the GPU chose {ours.tolist()} where the CPU chooses {theirs.tolist()}")
        if not all(map(math.isfinite, found[1])):
            raise RuntimeError(f"the GPU found log-probabilities {found[1].tolist()}")
