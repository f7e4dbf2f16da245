"""Drafts from a small recurrent head on the target's last hidden state: no KV cache, nothing to roll back.

`build_engines/drafting/network.py` says what one step computes. Here it runs on OpenVINO, a batch of rows at a time,
and the token of every step is chosen with the noise that the target will use there, so that the two agree often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from tandem.draft_kernels import choose_drafts
from tandem.drafter_manifest import DrafterManifest
from tandem.manifest import Manifest
from tandem.noise import GAMMA
from tandem.sampling import MIN_TEMPERATURE, SamplingParams
from tandem.sampling_kernels import BLOCK

MODEL_FILE = "drafter.xml"
WEIGHTS_FILE = "drafter.bin"
GRAPH_WIDTHS = (1, 2, 4, 8, 16, 32)  # each has a graph of fixed shapes; steps are filled up to the next
ONE_THREAD = 2  # rows up to which a second thread costs more than it brings
TABLES_FILE = "tables.npz"  # `ids` int32 [columns] ascending, `scale` float32 [hidden]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafts of a batch; both lists have a list per row, and those have the same lengths."""

    tokens: list[list[int]]  # ids of the target's vocabulary
    confidences: list[list[float]]  # probability of each draft in the drafter's eyes, at the row's temperature


@dataclass(frozen=True, slots=True)
class _Graph:
    """The head for a fixed number of rows; the arrays are its inputs."""

    request: Any
    states: Floats
    tokens: npt.NDArray[np.int64]


class RecurrentDrafter:
    """Proposes tokens for a target; not thread-safe."""

    def __init__(self, directory: Path, threads: int | None = None, target: Manifest | None = None) -> None:
        """Load what `python -m build_engines drafter` wrote to `directory`.

        Raises:
            tandem.manifest.ManifestError: the drafter is missing, damaged, made for another runtime version, or does
                not fit `target`.
        """
        self.manifest = DrafterManifest.load(Path(directory))
        if target is not None:
            self.manifest.require_target(target)
        with np.load(Path(directory) / TABLES_FILE) as tables:
            self.ids: npt.NDArray[np.int32] = tables["ids"]
            self._inverse_scale: Floats = 1.0 / tables["scale"]
        self.hidden_size, self.vocab_size = self.manifest.hidden_size, self.manifest.vocab_size
        self._offsets = (self.ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
        self._keys = np.empty(-(-len(self.ids) // BLOCK), np.int32)
        self._threads = threads
        self._core = ov.Core()
        self._model = self._core.read_model(Path(directory) / MODEL_FILE)
        self._graphs = {width: self._compile(width) for width in GRAPH_WIDTHS}

    def _compile(self, width: int) -> _Graph:
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads := self._threads or int(width <= ONE_THREAD):
            config["INFERENCE_NUM_THREADS"] = threads
        model = self._model.clone()
        model.reshape({model.input(0): [width, self.hidden_size], model.input(1): [width]})
        request = self._core.compile_model(model, "CPU", config).create_infer_request()
        states, tokens = np.zeros((width, self.hidden_size), np.float32), np.zeros(width, np.int64)
        request.set_input_tensor(0, ov.Tensor(states, shared_memory=True))
        request.set_input_tensor(1, ov.Tensor(tokens, shared_memory=True))
        return _Graph(request, states, tokens)

    def propose(
        self,
        features: Floats,
        tokens: Sequence[int],
        positions: Sequence[int],
        sampling: Sequence[SamplingParams],
        counts: Sequence[int],
        goes_on: Callable[[int, Sequence[float]], bool] | None = None,
    ) -> Proposal:
        """Draft up to `counts[i]` tokens for row i: fewer after an end id, which is the last draft of its row.

        Args:
            features: float32 [B, hidden], `Engine.features` of the positions that chose the newest tokens.
            tokens: B newest tokens.
            positions: absolute index in the sequence of the first token to draft, one more than the newest token's.
            sampling: how the target will choose; temperature, `top_k` of 1, seed and end ids are heeded.
            counts: B numbers, 0 is none.
            goes_on: asked with a row and the confidences of its drafts so far; False ends them.

        Raises:
            ValueError: lengths contradict each other, or a value is out of range.
        """
        self._check(features, tokens, positions, sampling, counts)
        drafts: list[list[int]] = [[] for _ in tokens]
        confidences: list[list[float]] = [[] for _ in tokens]
        rows = [row for row, count in enumerate(counts) if count > 0]
        state = self.start(features[rows])
        newest = np.array([tokens[row] for row in rows], np.int64)
        scales = np.array([_scale(sampling[row]) for row in rows], np.float64)
        seeds = np.array([sampling[row].seed for row in rows], np.uint64)
        places = np.array([positions[row] for row in rows], np.int64)
        while rows:
            logits, next_state = self.step(state, newest)
            columns, shares = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
            choose_drafts(logits.view(np.int32), self._offsets, scales, places, seeds, self._keys, columns, shares)
            newest = self.ids[columns].astype(np.int64)
            kept = []
            drawn = zip(rows, columns.tolist(), newest.tolist(), shares.tolist(), strict=True)
            for index, (row, column, token, share) in enumerate(drawn):
                if column < 0:  # the state overflowed: no draft is better than any
                    continue
                drafts[row].append(token)
                confidences[row].append(share)
                if (
                    len(drafts[row]) < counts[row]
                    and token not in sampling[row].end_ids
                    and (goes_on is None or goes_on(row, confidences[row]))
                ):
                    kept.append(index)
            places += 1
            state = next_state
            if len(kept) < len(rows):
                rows = [rows[index] for index in kept]
                state, newest, scales = state[kept], newest[kept], scales[kept]
                seeds, places = seeds[kept], places[kept]
        return Proposal(drafts, confidences)

    def warm_up(self) -> None:
        """Compile what is compiled at first use."""
        greedy, drawn = SamplingParams(), SamplingParams(temperature=1.0)
        self.propose(np.ones((2, self.hidden_size), np.float32), [0, 0], [1, 1], [greedy, drawn], [2, 2])

    def start(self, features: Floats) -> Floats:
        """The state before the first step, [n, hidden], from `Engine.features` [n, hidden]."""
        return features * self._inverse_scale

    def step(self, state: Floats, tokens: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """One step behind n newest tokens: logits float32 [n, columns] and the next state [n, hidden].

        Both are valid until the next step; columns are the tokens `ids`.
        """
        count = len(tokens)
        width = next((width for width in self._graphs if width >= count), -(-count // 32) * 32)
        if width not in self._graphs:
            self._graphs[width] = self._compile(width)
        graph = self._graphs[width]
        graph.states[:count], graph.tokens[:count] = state, tokens
        graph.request.infer()
        logits, next_state = (graph.request.get_output_tensor(index).data[:count] for index in range(2))
        return logits, next_state

    def _check(
        self,
        features: Floats,
        tokens: Sequence[int],
        positions: Sequence[int],
        sampling: Sequence[SamplingParams],
        counts: Sequence[int],
    ) -> None:
        rows = len(tokens)
        if features.shape != (rows, self.hidden_size) or features.dtype != np.float32:
            raise ValueError(f"features: {features.dtype} {features.shape} is not float32 {(rows, self.hidden_size)}")
        if not len(positions) == len(sampling) == len(counts) == rows:
            raise ValueError(
                f"{rows} tokens, {len(positions)} positions, {len(sampling)} sampling, {len(counts)} counts"
            )
        if rows and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise ValueError(f"tokens: ids must be in 0 .. {self.vocab_size - 1}")
        if rows and (min(positions) < 0 or min(counts) < 0):
            raise ValueError("positions and counts must not be negative")


def _scale(params: SamplingParams) -> float:
    greedy = params.temperature < MIN_TEMPERATURE or params.top_k == 1
    return 0.0 if greedy else 1.0 / params.temperature
