"""The Triton model behind `generate`: reads the request's tensors, queues it, answers from another thread."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tandem.coordinator import Coordinator
from tandem.drafters import has_model_drafter
from tandem.errors import InvalidRequest
from tandem.settings import CoordinatorSettings, SettingError
from tandem.triton.bls_executor import BlsExecutor
from tandem.triton.errors import error_response, request_error
from tandem.triton.metrics import MetricsPublisher
from tandem.triton.responses import FINAL, ResponseSender
from tandem.triton.tensors import parameters_of

SWITCH_INTERVAL_S = 0.0005


class GenerateModel:
    """Life cycle as in the Python backend's documentation: `initialize`, `execute`, `finalize`."""

    def initialize(self, args: dict[str, str]) -> None:
        # The decoding thread must not wait long for threads that only prepare or send text (Python's default: 5 ms).
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        settings = CoordinatorSettings.read(parameters_of(json.loads(args["model_config"])))
        repository = Path(args["model_repository"]).parent
        for name in settings.targets:
            if not (repository / name).is_dir():
                raise SettingError(
                    f"setting 'target_models' names {name}, which is no model in {repository}: copy target_2 to it"
                )
        engine_directory = repository / settings.targets[0] / "1" / settings.target_engine
        targets = [BlsExecutor(name, engine_directory) for name in settings.targets]
        has_draft = has_model_drafter(engine_directory, repository / settings.draft_model / "1" / settings.draft_engine)
        self._coordinator = Coordinator(settings, engine_directory, targets, has_draft)
        self._responses = ResponseSender(self._coordinator, settings.max_responses_per_s)
        self._metrics = MetricsPublisher(self._coordinator.read_metrics)
        for part in (self._coordinator, self._responses, self._metrics):
            part.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                fields = {t.name(): t.as_numpy().reshape(-1).tolist() for t in request.inputs()}
                parameters = json.loads(request.parameters() or "{}")
                parsed = self._coordinator.parse(fields, parameters)
                # Copied now: Triton may free a trace once its request has been taken.
                trace = (request.trace().get_context() or "") if self._coordinator.tracing else ""
                self._responses.submit(parsed, sender, _timeout_s(request, parameters), trace)
            except Exception as failure:
                error = request_error(failure)
                self._coordinator.count_refused(error)
                sender.send(error_response(error), flags=FINAL)

    def finalize(self) -> None:
        for part in (self._coordinator, self._responses, self._metrics):
            part.stop()


def _timeout_s(request: Any, parameters: Mapping[str, Any]) -> float | None:
    """The request's timeout. gRPC clients set it on the request; the HTTP generate endpoint makes it a parameter."""
    microseconds = request.timeout() or parameters.get("timeout", 0)
    if not isinstance(microseconds, int) or microseconds < 0:
        raise InvalidRequest("timeout: must be a number of microseconds, 0 (none) or more")
    return microseconds / 1e6 if microseconds else None
