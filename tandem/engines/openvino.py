"""Language-model engine on OpenVINO: paged attention on CPU, a ragged batch of rows in every step."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from tandem.engines import INVARIANCES, EngineOptions, Row
from tandem.engines.softcap import SoftcapAttention, softcap_of
from tandem.manifest import Manifest

MODEL_FILE = "openvino_model.xml"
GRAPH_WIDTHS = (2, 4, 8, 16, 32, 6, 12, 24, 20, 10, 48, 40)  # which to have first if not all fit in memory
GRAPH_MEMORY = 1.25  # of a graph, in sizes of the weights (measured)


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """One operator in one forward pass."""

    name: str
    kind: str  # its type after OpenVINO's fusions, such as FullyConnectedCompressed
    kernel: str  # who computed it and in which precision, such as brgemm_avx2_f32
    seconds: float


class OpenVinoEngine:
    """Implements `tandem.engines.Engine`; `tandem.engines.INVARIANCES` explains the option `invariance`."""

    def __init__(self, directory: Path, manifest: Manifest, options: EngineOptions) -> None:
        activations = options.activations or manifest.activations
        kv_cache = options.kv_cache or manifest.kv_cache
        if options.invariance not in INVARIANCES:
            raise ValueError(f"invariance {options.invariance!r} is not one of {', '.join(INVARIANCES)}")
        if options.invariance != "off" and kv_cache == "u8":
            raise ValueError(
                f"kv_cache u8 cannot keep invariance {options.invariance!r}, because its scales depend on the order of "
                "writes: choose kv_cache f16, or set invariance to off"
            )
        core = ov.Core()
        model = core.read_model(directory / MODEL_FILE)
        paged_attention_transformation(model)
        features = _gather_before_lm_head(model)
        if options.features:
            model.add_results([ops.result(features)])
        cap = softcap_of(model)
        if cap is not None and (activations, kv_cache) != ("f32", "f32"):
            raise ValueError(
                "this model caps its attention scores: it runs with activations f32 and kv_cache f32 only, "
                f"not {activations} and {kv_cache}"
            )
        self._softcap = None if cap is None else SoftcapAttention(model, cap)
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": activations,
            "KV_CACHE_PRECISION": kv_cache,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(manifest.dynamic_quantization_group),
        }
        if options.operator_times:
            config["PERF_COUNT"] = "YES"
        if options.threads:
            config["INFERENCE_NUM_THREADS"] = options.threads
        self.graph_widths: Sequence[int] = [] if self._softcap else _graph_widths(directory, options.graph_memory_mb)
        models = {0: model} | {width: _of_width(model, width) for width in self.graph_widths}  # 0: of all shapes
        with ThreadPoolExecutor() as pool:
            compiled = list(pool.map(lambda item: core.compile_model(item, "CPU", config), models.values()))
        self._graphs = {width: item.create_infer_request() for width, item in zip(models, compiled, strict=True)}
        self._request = self._graphs[0]
        self.vocab_size = manifest.vocab_size
        self._min_rows = 1 if options.invariance == "off" else 2  # of a step, and of the LM head
        self._caches = self._bind_caches(compiled[0], options.kv_cache_mb)
        self._pools = [tensor.data.view(np.uint8).reshape(tensor.shape[0], -1) for tensor in self._caches]
        precisions = f"{activations} {kv_cache} {options.invariance} {' '.join(map(str, self._caches[0].shape[1:]))}"
        self.identity = f"{manifest.build_key} {manifest.runtime} {manifest.runtime_version} {precisions}"
        self._feeds: dict[str, npt.NDArray[Any]] = {}
        self._answered = 0  # rows of logits of the last forward pass
        # For `operator_times`: the last pass's graph; of each graph its passes, and what was told after how many.
        self._last = 0
        self._passes: Counter[int] = Counter()
        self._told: dict[int, dict[str, float]] = {}
        self._told_at: dict[int, int] = {}

    def _bind_caches(self, compiled: Any, megabytes: int) -> list[ov.Tensor]:
        """Allocate the KV pool; shapes and types are known only after compiling.

        It is zeroed, so that all of its memory is there from the start, and because 0 times what stood in memory before
        may be NaN.
        """
        ports = {name: port for port in compiled.inputs for name in port.get_names() if "_cache." in name}
        shapes = {name: [d.get_length() for d in list(port.get_partial_shape())[1:]] for name, port in ports.items()}
        block_bytes = sum(math.prod(shape) * ports[name].get_element_type().size for name, shape in shapes.items())
        blocks = megabytes * 2**20 // block_bytes
        if blocks < 2:
            raise ValueError(f"kv_cache_mb {megabytes} is too little: a block of this model has {block_bytes} bytes")
        self._spare_block = self.num_blocks = blocks - 1  # the spare one is for rows that only fill up a step
        # A value block is [heads, block, head_dim]; key blocks may carry extra rows for scales.
        self.block_size = next(shape[1] for name, shape in shapes.items() if name.startswith("value_cache."))
        tensors = []
        for name, port in ports.items():
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([blocks, *shapes[name]]))
            tensor.data.fill(0)
            for request in self._graphs.values():
                request.set_tensor(name, tensor)  # stays bound for the life of the engine
            tensors.append(tensor)
        return tensors

    def forward(self, rows: Sequence[Row], width: int = 0) -> npt.NDArray[np.float32]:
        """See `Engine.forward`."""
        if self._min_rows > 1:
            rows = [part for row in rows for part in _apart(row)]
        width = max(width, self._min_rows)
        graph = self._graph(rows, width)
        width = max(width, graph)
        self._request = self._graphs[graph]
        self._last = graph
        self._passes[graph] += 1
        missing = width - sum(len(row.tokens) for row in rows)
        rows = [*rows, *[Row([0], 0, [self._spare_block], 0)] * missing]
        tokens: list[int] = []
        positions: list[npt.NDArray[np.int64]] = []
        wanted: list[int] = []
        blocks: list[int] = []
        lengths: list[int] = []
        block_counts: list[int] = []
        for row in rows:
            count = len(row.tokens)
            wanted.extend(range(len(tokens) + count - row.logits, len(tokens) + count))
            tokens.extend(row.tokens)
            positions.append(np.arange(row.past, row.past + count, dtype=np.int64))
            lengths.append(count)
            block_counts.append(-(-(row.past + count) // self.block_size))
            blocks.extend(row.blocks[: block_counts[-1]])
        answered = len(wanted)
        wanted += [wanted[-1] if wanted else 0] * (width - answered)
        feeds: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.array(tokens, np.int64),
            "position_ids": np.concatenate(positions),
            "past_lens": np.array([row.past for row in rows], np.int32),
            "subsequence_begins": _offsets(lengths),
            "block_indices": np.array(blocks, np.int32),
            "block_indices_begins": _offsets(block_counts),
            "max_context_len": np.array(max(r.past + n for r, n in zip(rows, lengths, strict=True)), np.int32),
            "sampled_tokens_indices": np.array(wanted, np.int64),
        }
        paged = feeds
        if self._softcap:
            feeds = self._softcap.feeds(paged)
        for name, value in feeds.items():
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        self._feeds = feeds  # the tensors above only borrow this memory
        self._request.infer()
        if self._softcap:
            self._softcap.store(self._request, paged)
        self._answered = answered
        logits: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits.reshape(-1, self.vocab_size)[:answered]

    def operator_times(self) -> list[OperatorTime]:
        """How long each operator took in the last graph's forward passes since the last call, on average.

        Only with `EngineOptions.operator_times`. The runtime tells averages over all passes since it was loaded, in
        whole microseconds: what came since is their difference.
        """
        passes, graph = self._passes[self._last], self._last
        before = self._told.get(graph, {})
        told = {
            item.node_name: (item.node_type, item.exec_type, item.real_time.total_seconds() * passes)
            for item in self._request.get_profiling_info()
        }
        since = passes - self._told_at.get(graph, 0)
        self._told[graph] = {name: total for name, (_, _, total) in told.items()}
        self._told_at[graph] = passes
        return [
            OperatorTime(name, kind, kernel, (total - before.get(name, 0.0)) / since)
            for name, (kind, kernel, total) in told.items()
            if since and total
        ]

    def _graph(self, rows: Sequence[Row], width: int) -> int:
        """The narrowest graph that these rows fit in, 0 if there is none."""
        if any(len(row.tokens) > 1 for row in rows):
            return 0
        at = bisect_left(self.graph_widths, max(width, len(rows)))
        return self.graph_widths[at] if at < len(self.graph_widths) else 0

    def copy_block(self, source: int, target: int) -> None:
        """See `Engine.copy_block`."""
        for pool in self._pools:
            pool[target] = pool[source]

    def read_block(self, block: int) -> npt.NDArray[np.uint8]:
        """See `Engine.read_block`."""
        return np.concatenate([pool[block] for pool in self._pools])

    def write_block(self, block: int, data: npt.NDArray[np.uint8]) -> None:
        """See `Engine.write_block`."""
        sizes = [pool.shape[1] for pool in self._pools]
        if len(data) != sum(sizes):
            raise ValueError(f"a block has {sum(sizes)} bytes, not {len(data)}")
        for pool, part in zip(self._pools, np.split(data, list(accumulate(sizes))[:-1]), strict=True):
            pool[block] = part

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """See `Engine.features`."""
        features: npt.NDArray[np.float32] = self._request.get_output_tensor(1).data
        return features.reshape(len(features), -1)[: self._answered]


def _apart(row: Row) -> list[Row]:
    """The row, with a row of its own on the same blocks for each token of the answer.

    The kernels compute a row of one token otherwise than one of several; that a token's predecessors are rows of the
    same step makes no difference, because a layer writes the K and V of all rows before any of them attends.
    """
    if row.answer == 0 or len(row.tokens) == 1:
        return [row]
    first = len(row.tokens) - row.answer
    if first > 1:
        raise ValueError(
            "a row has tokens of the prompt and of the answer, which OpenVINO computes wrongly in one step"
        )
    parts = [
        Row(row.tokens[at : at + 1], row.past + at, row.blocks, int(at >= len(row.tokens) - row.logits))
        for at in range(first, len(row.tokens))
    ]
    if first:
        parts.insert(0, Row(row.tokens[:first], row.past, row.blocks, max(0, row.logits - row.answer)))
    return parts


def _graph_widths(directory: Path, megabytes: int) -> list[int]:
    """The widths that graphs are made for, as many as fit."""
    weights = (directory / MODEL_FILE).with_suffix(".bin").stat().st_size
    return sorted(GRAPH_WIDTHS[: int(megabytes * 2**20 / (weights * GRAPH_MEMORY))])


def _of_width(model: ov.Model, width: int) -> ov.Model:
    """The model for steps of `width` rows of one token each."""
    fixed = model.clone()
    shapes = {name: [width] for name in ("input_ids", "position_ids", "past_lens", "sampled_tokens_indices")}
    shapes |= {name: [width + 1] for name in ("subsequence_begins", "block_indices_begins")}
    fixed.reshape(shapes | {"block_indices": [-1]})
    return fixed


def _offsets(counts: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array([0, *accumulate(counts)], np.int32)


def _gather_before_lm_head(model: ov.Model) -> Any:
    """Compute logits only for the positions that want them: the head is a fifth of a small model's weights.

    Returns:
        The output of the node that gathers: the head's input for those positions.
    """
    node = model.get_results()[0].input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    wanted = ops.parameter([-1], np.int64, name="sampled_tokens_indices")
    wanted.output(0).set_names({"sampled_tokens_indices"})
    gathered = ops.gather(node.input_value(0), wanted, ops.constant(0, dtype=np.int64))
    node.input(0).replace_source_output(gathered.output(0))
    model.add_parameters([wanted])
    model.validate_nodes_and_infer_types()
    return gathered.output(0)
