"""The Triton model `label_ranker`: logits in, probabilities and the names of the likeliest classes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tandem.errors import InvalidRequest, RequestError, Unsupported
from tandem.settings import RankerSettings
from tandem.triton.errors import error_response
from tandem.triton.tensors import parameters_of
from tandem.vision.manifest import VisionManifest
from tandem.vision.ranking import Ranker
from tandem.vision.repository import built_engines

TOP_K = "top_k"


class RankerModel:
    """Life cycle as in the Python backend's documentation: `initialize`, `execute`.

    Each input but `top_k` has the name of a classifier of the same repository, whose labels it is given.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._default = RankerSettings.read(parameters_of(config)).default_top_k
        repository = Path(args["model_repository"]).parent
        names = [item["name"] for item in config["input"] if item["name"] != TOP_K]
        self._rankers = {
            name: Ranker(VisionManifest.read(directory).labels(directory))
            for name, directory in built_engines(repository, names).items()
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            k = self._count(inputs.pop(TOP_K, None))
            if len(inputs) != 1:
                raise InvalidRequest(f"logits: of one classifier, not of {len(inputs)}: {', '.join(sorted(inputs))}")
            ((name, logits),) = inputs.items()
            if name not in self._rankers:
                raise Unsupported(f"logits: model {name!r} has not been built on this server")
            ranking = self._rankers[name].rank(logits, k)
        except RequestError as error:
            return error_response(error)
        tensors = [pb_utils.Tensor(name, array) for name, array in ranking._asdict().items()]
        return pb_utils.InferenceResponse(tensors)

    def _count(self, tensor: np.ndarray[Any, Any] | None) -> int:
        """One number for all images of the request: the answer is a rectangle."""
        if tensor is None:
            return self._default
        values = sorted(set(tensor.reshape(-1).tolist()))
        if len(values) != 1:
            raise InvalidRequest(f"top_k: differs among the images of one request: {values}")
        return int(values[0])
