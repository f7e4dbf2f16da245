"""The Triton models `target` and `draft`: tensors in, one executor step, tensors out."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.cache_setup import build_cache
from tandem.drafters import model_drafter_for
from tandem.engine_profile import profile_engine
from tandem.engines import EngineOptions, load_engine
from tandem.executor import Executor
from tandem.sequence_cache import cache_of
from tandem.settings import DraftSettings, TargetSettings
from tandem.shared_texts import SharedTexts
from tandem.speculation import Speculation
from tandem.step import StepRequest
from tandem.triton.bls_executor import BlsExecutor
from tandem.triton.tensors import parameters_of, to_arrays, to_tensor


class ExecutorModel:
    """Life cycle as in the Python backend's documentation: `initialize`, `execute`, `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        version_directory = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        self._executor = self._load(parameters_of(json.loads(args["model_config"])), version_directory, device)
        self._executor.warm_up()
        self._background = ThreadPoolExecutor(1, "ahead")
        self._ahead: Future[None] | None = None  # the pass that runs while the coordinator works
        cache = self._executor.kv_cache
        pb_utils.Logger.log_info(f"{args['model_name']}: {cache.num_blocks} KV blocks of {cache.block_size} tokens")

    def _load(self, parameters: dict[str, str], version_directory: Path, device: int) -> Executor:
        raise TypeError("one of the subclasses below is the model")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._background.shutdown()
        self._executor.kv_cache.close()

    def _answer(self, request: Any) -> Any:
        try:
            ahead, self._ahead = self._ahead, None
            if ahead is not None:
                ahead.result()
            result = self._executor.step(StepRequest.from_arrays(to_arrays(request.inputs()[0])))
        except (ValueError, KeyError, TypeError) as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        response = pb_utils.InferenceResponse([to_tensor("result", result.to_arrays())])
        if self._executor.can_run_ahead:
            self._ahead = self._background.submit(self._executor.run_ahead)
        return response


class TargetModel(ExecutorModel):
    """The executor whose tokens are served, with its drafters."""

    def _load(self, parameters: dict[str, str], version_directory: Path, device: int) -> Executor:
        settings = TargetSettings.read(parameters)
        directory = version_directory / settings.target_engine
        draft_directory = version_directory.parent.parent / settings.draft_model / "1" / settings.draft_engine
        draft = BlsExecutor(settings.draft_model, draft_directory)
        drafter = model_drafter_for(directory, draft_directory, draft)
        options = EngineOptions(
            kv_cache_mb=settings.kv_cache_mb,
            device=device,
            activations=settings.activations or None,
            kv_cache=settings.kv_cache or None,
            threads=settings.threads or None,
            invariance=settings.invariance,
            features=drafter is not None and drafter.wants_features,
            graph_memory_mb=settings.graph_memory_mb,
        )
        engine = load_engine(directory, options)
        shared = SharedTexts(settings.shared_suffix_tokens) if settings.shared_suffix_tokens else None
        # The clock makes the epoch differ from that of any earlier process.
        speculation = Speculation(profile_engine(engine), drafter, shared, settings.draft_control)
        return Executor(engine, time.time_ns(), speculation, build_cache(engine, settings))


class DraftModel(ExecutorModel):
    """The executor of a draft model."""

    def _load(self, parameters: dict[str, str], version_directory: Path, device: int) -> Executor:
        settings = DraftSettings.read(parameters)
        options = EngineOptions(
            kv_cache_mb=settings.draft_kv_cache_mb,
            device=device,
            activations=settings.draft_activations or None,
            kv_cache=settings.draft_kv_cache or None,
            threads=settings.draft_threads or None,
            graph_memory_mb=settings.draft_graph_memory_mb,
        )
        engine = load_engine(version_directory / settings.draft_engine, options)
        return Executor(engine, time.time_ns(), kv_cache=cache_of(engine, reuse=bool(settings.draft_prefix_cache)))
