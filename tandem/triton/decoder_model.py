"""The Triton model `image_decoder`: image files in, for each classifier that is asked for its pixels out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from tandem.errors import InvalidRequest, RequestError, Unsupported
from tandem.settings import MAX_DECODER_THREADS, DecoderSettings
from tandem.triton.errors import error_response
from tandem.triton.tensors import parameters_of
from tandem.vision.image_file import ImageLimits, decode
from tandem.vision.manifest import VisionManifest
from tandem.vision.repository import built_engines

Pixels = npt.NDArray[np.uint8]


class DecoderModel:
    """Life cycle as in the Python backend's documentation: `initialize`, `execute`, `finalize`.

    Each output has the name of a classifier of the same repository, whose manifest says what it takes.
    """

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        settings = DecoderSettings.read(parameters_of(config))
        repository = Path(args["model_repository"]).parent
        engines = built_engines(repository, [output["name"] for output in config["output"]])
        self._rules = {name: VisionManifest.read(directory).image for name, directory in engines.items()}
        self._limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        # Pillow decodes without the interpreter's lock.
        threads = settings.decoder_threads or min(MAX_DECODER_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "decode")

    def execute(self, requests: list[Any]) -> list[Any]:
        started = [self._start(request) for request in requests]
        return [self._finish(work) for work in started]

    def finalize(self) -> None:
        self._pool.shutdown()

    def _start(self, request: Any) -> dict[str, list[Future[Pixels]]]:
        """Hand the images of a request to the threads, once for each classifier."""
        files = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        names = sorted(request.requested_output_names())
        return {name: [self._pool.submit(self._decode, data, name) for data in files] for name in names}

    def _decode(self, data: bytes, classifier: str) -> Pixels:
        if classifier not in self._rules:
            raise Unsupported(f"image: model {classifier!r} has not been built on this server")
        return decode(data, self._rules[classifier], self._limits)

    @staticmethod
    def _finish(work: dict[str, list[Future[Pixels]]]) -> Any:
        try:
            tensors = [pb_utils.Tensor(name, np.stack(_results(images))) for name, images in work.items()]
        except RequestError as error:
            return error_response(error)
        except Exception as error:  # a bug or no memory: it must not fail the other requests of the batch
            return error_response(RequestError(f"internal error while decoding: {error!r}"))
        return pb_utils.InferenceResponse(tensors)


def _results(images: Sequence[Future[Pixels]]) -> list[Pixels]:
    """What the threads made. Of several images the one with an error is named by its place, from 0."""
    results = []
    for index, image in enumerate(images):
        try:
            results.append(image.result())
        except InvalidRequest as error:
            where = f"[{index}]" if len(images) > 1 else ""
            raise InvalidRequest(f"image{where}{str(error).removeprefix('image')}") from None
    return results
