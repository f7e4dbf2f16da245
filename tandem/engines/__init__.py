"""One file per runtime, all behind the small `Engine` protocol below.

An engine runs one forward pass over a ragged batch of rows and knows nothing of requests, sampling or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tandem.manifest import Manifest
from tandem.sampling import Choice, Floats, Int32s

if TYPE_CHECKING:
    from tandem.engines.session import Session


@dataclass(frozen=True, slots=True)
class Row:
    """The new tokens of one sequence in one step."""

    tokens: Sequence[int]  # new token ids, at least one
    past: int  # tokens of this sequence that are in the KV cache already
    blocks: Sequence[int]  # KV block ids, or the one slot; they cover positions 0 .. past + len(tokens) - 1
    logits: int = 1  # how many of the last positions want logits, 0 .. len(tokens)
    answer: int = 0  # how many of the last tokens belong to the answer: they must come out as if fed one at a time


class Engine(Protocol):
    """A causal language model and its KV memory: `tandem.kv_cache.BlockMemory` or `tandem.slot_cache.SlotMemory`."""

    vocab_size: int
    block_size: int  # tokens per KV block; of a slot, which holds a whole sequence: its length
    num_blocks: int
    identity: str  # what K and V depend on besides the tokens: equal ones may share them
    graph_widths: Sequence[int]  # ascending; steps of one-token rows are filled up to the next: see EngineOptions

    def forward(self, rows: Sequence[Row], width: int = 0) -> npt.NDArray[np.float32]:
        """Run one step: write K and V of every new token, return the wanted logits.

        Args:
            rows: at least one.
            width: the step is filled up to so many tokens, because a change of its shape may cost time.

        Returns:
            float32 [sum(row.logits), vocab_size], rows in order; a view that is valid until the next call.
        """
        ...

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """What the LM head saw for each row of the last logits; only with `EngineOptions.features`.

        Returns:
            float32 [sum(row.logits), hidden size]; a view that is valid until the next forward pass.
        """
        ...


@runtime_checkable
class ChoosingEngine(Protocol):
    """What an engine has besides that may be able to choose tokens where its logits are, and leave them there."""

    @property
    def chooses(self) -> bool:
        """Whether it is."""
        ...

    def choose(self, rows: Sequence[Row], choices: Sequence[Choice], width: int = 0) -> tuple[Int32s, Floats]:
        """Run one step like `forward`, and choose a token for each row of logits.

        Args:
            rows: at least one.
            choices: what each of the wanted logits is for.
            width: as of `forward`.

        Returns:
            Token ids and log-probabilities, as `tandem.sampling.choose`.
        """
        ...


# What a sequence's tokens may depend on besides the request. Kernels for a single row round differently from those for
# more, and dynamic quantization of activations makes that visible.
#   off   on everything: neighbours, chunks of the prompt, preemption, drafts
#   step  on nothing: every step has at least two rows, and every token of an answer is a row of its own
INVARIANCES = ("off", "step")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the operator may choose when an engine is loaded; None means: as the manifest says."""

    kv_cache_mb: int = 1024
    device: int = 0  # number of the GPU, for TensorRT; of a pipeline's first stage, the others are on those behind it
    activations: str | None = None
    kv_cache: str | None = None
    threads: int | None = None
    invariance: str = "step"  # one of INVARIANCES
    features: bool = False  # hand out the hidden states, for drafters that go on from them
    # Memory for graphs of a fixed width, as many as fit: each holds a copy of the weights. A step in one costs less
    # than in the graph for all shapes, and nothing more when the width changes. 0: none.
    graph_memory_mb: int = 0
    operator_times: bool = False  # note how long each operator takes, for whoever looks for a bottleneck


def load_engine(directory: Path | str, options: EngineOptions | None = None) -> Engine:
    """Load the engine in `directory`, whatever runtime its manifest names.

    Raises:
        tandem.manifest.ManifestError: the engine is missing, damaged or made for another runtime version.
        ValueError: the manifest names a runtime that this build of Tandem does not have.
    """
    manifest = Manifest.load(Path(directory))
    if manifest.runtime == "openvino":
        from tandem.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(Path(directory), manifest, options or EngineOptions())
    if manifest.runtime in ("onnxruntime", "tensorrt"):
        from tandem.engines.slots import SlotEngine

        options = options or EngineOptions()
        return SlotEngine(_session(Path(directory), manifest.runtime, options), manifest, options)
    raise ValueError(f"{directory}: runtime {manifest.runtime!r} is not one of: openvino, onnxruntime, tensorrt")


def _session(directory: Path, runtime: str, options: EngineOptions) -> Session:
    """The graph of an engine with slots, or the stages of its pipeline, which share the memory for K and V."""
    from tandem.engines.pipeline import PipelineSession
    from tandem.engines.session import graph_files

    stages: list[Session]
    if runtime == "onnxruntime":
        from tandem.engines.onnxruntime import OnnxRuntimeSession

        graphs = graph_files(directory, "onnx")
        megabytes = options.kv_cache_mb // len(graphs)
        stages = [OnnxRuntimeSession(directory / graph, megabytes, options.threads) for graph in graphs]
    else:
        from tandem.engines.tensorrt import TensorRtSession

        plans = graph_files(directory, "plan")
        stages = [
            TensorRtSession(directory / plan, options.kv_cache_mb // len(plans), options.device + place)
            for place, plan in enumerate(plans)
        ]
    return stages[0] if len(stages) == 1 else PipelineSession(stages)
