"""Image classifier on LiteRT (TensorFlow Lite), CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tandem.vision.classifier import Logits, Pixels, checked
from tandem.vision.manifest import VisionManifest


class LiteRtClassifier:
    """Implements `tandem.vision.classifier.Classifier`."""

    def __init__(self, directory: Path, manifest: VisionManifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self.labels = manifest.labels(directory)
        self._model = Interpreter(str(directory / manifest.model_file), num_threads=threads or os.cpu_count())
        self._images = self._model.get_input_details()[0]["index"]
        self._logits = self._model.get_output_details()[0]["index"]
        self._shape: tuple[int, ...] = ()

    def infer(self, images: Pixels) -> Logits:
        """See `Classifier.infer`; another number of images than the last time costs some milliseconds more."""
        images = checked(images, self.manifest)
        if images.shape != self._shape:
            self._model.resize_tensor_input(self._images, images.shape)
            self._model.allocate_tensors()
            self._shape = images.shape
        self._model.set_tensor(self._images, images)
        self._model.invoke()
        return np.asarray(self._model.get_tensor(self._logits))
