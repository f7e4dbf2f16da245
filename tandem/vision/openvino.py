"""Image classifier on OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from tandem.vision.classifier import Logits, Pixels, checked
from tandem.vision.manifest import VisionManifest

_ARITHMETIC = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # of what is not quantized


class OpenVinoClassifier:
    """Implements `tandem.vision.classifier.Classifier`."""

    def __init__(self, directory: Path, manifest: VisionManifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self.labels = manifest.labels(directory)
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _ARITHMETIC[manifest.precision],
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        self._request = core.compile_model(directory / manifest.model_file, "CPU", config).create_infer_request()

    def infer(self, images: Pixels) -> Logits:
        """See `Classifier.infer`."""
        tensor = ov.Tensor(checked(images, self.manifest), shared_memory=True)
        self._request.set_input_tensor(tensor)
        self._request.infer()
        return np.array(self._request.get_output_tensor().data)  # the runtime's own memory is written to again
