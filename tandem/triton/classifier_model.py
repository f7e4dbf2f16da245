"""The Triton model of a classifier on a CPU engine: the requests of a batch in, one inference, each its part out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tandem.errors import InvalidRequest
from tandem.settings import ClassifierSettings
from tandem.triton.errors import error_response
from tandem.triton.tensors import parameters_of
from tandem.vision.classifier import load_classifier
from tandem.vision.manifest import INPUT, OUTPUT
from tandem.vision.repository import engine_directory


class ClassifierModel:
    """Life cycle as in the Python backend's documentation: `initialize`, `execute`."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = ClassifierSettings.read(parameters_of(config))
        directory = engine_directory(Path(args["model_repository"]).parent, args["model_name"])
        self._classifier = load_classifier(directory, settings.classifier_threads or None)
        size = self._classifier.manifest.image.size
        # One piece of memory for all batches: a new one each time would be mapped and cleared each time.
        self._batch = np.zeros((config["max_batch_size"], size, size, 3), np.uint8)
        # Here and not in the configuration, which does not know the engine's size.
        preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
        for count in {1, *preferred, config["max_batch_size"]}:
            self._classifier.infer(self._batch[:count])

    def execute(self, requests: list[Any]) -> list[Any]:
        images = [pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy() for request in requests]
        if images[0].shape[1:] != self._batch.shape[1:]:  # the batcher puts only equal ones together
            found, wanted = (" x ".join(map(str, shape[1:])) for shape in (images[0].shape, self._batch.shape))
            error = InvalidRequest(f"{INPUT}: is {found}; this classifier takes {wanted}")
            return [error_response(error) for _ in requests]
        logits = self._classifier.infer(self._joined(images))
        ends = np.cumsum([len(part) for part in images])[:-1]
        parts = np.split(logits, ends)  # views
        return [pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, part)]) for part in parts]

    def _joined(self, images: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """The images of all requests, [N, size, size, 3]. Those of a single one stay in the server's shared memory."""
        if len(images) == 1:
            return images[0]
        return np.concatenate(images, out=self._batch[: sum(map(len, images))])
