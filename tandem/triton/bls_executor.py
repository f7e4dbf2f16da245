"""An executor as another model of the same server, reached by BLS calls."""

from __future__ import annotations

from pathlib import Path

import triton_python_backend_utils as pb_utils

from tandem.decoding import ServerStopping, TargetFailed
from tandem.manifest import Manifest, ManifestError
from tandem.step import StepRequest, StepResult
from tandem.triton.tensors import to_arrays, to_tensor

SERVER_STOPPING = "Server not ready"  # Triton's answer to BLS calls once it was told to stop


class BlsExecutor:
    """Implements `tandem.decoding.Target`: the target for `generate`, the draft for the target."""

    def __init__(self, model_name: str, engine_directory: Path) -> None:
        self._model_name = model_name
        self._engine_directory = engine_directory

    def step(self, request: StepRequest) -> StepResult:
        """See `Target.step`."""
        call = pb_utils.InferenceRequest(
            model_name=self._model_name,
            requested_output_names=["result"],
            inputs=[to_tensor("step", request.to_arrays())],
        )
        response = call.exec()
        if response.has_error():
            message = response.error().message()
            raise ServerStopping(message) if SERVER_STOPPING in message else TargetFailed(message)
        return StepResult.from_arrays(to_arrays(response.output_tensors()[0]))

    def restart(self) -> None:
        """Load the model anew; needs a server that runs with `--model-control-mode=explicit`."""
        try:
            # Not left to the load: reporting a failed one, the Python backend of Triton 2.51 reads memory that it has
            # freed, and this process may crash.
            Manifest.load(self._engine_directory)
        except ManifestError as error:
            raise TargetFailed(str(error)) from None
        try:
            # The server believes that a model with a dead process is ready: loading alone would change nothing.
            pb_utils.unload_model(model_name=self._model_name)
            pb_utils.load_model(model_name=self._model_name)
        except pb_utils.TritonModelException as error:
            raise TargetFailed(f"{error} (is the server running with --model-control-mode=explicit?)") from None
