"""Image classifier on ONNX Runtime, CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from tandem.vision.classifier import Logits, Pixels, checked
from tandem.vision.manifest import INPUT, OUTPUT, VisionManifest


class OnnxRuntimeClassifier:
    """Implements `tandem.vision.classifier.Classifier`."""

    def __init__(self, directory: Path, manifest: VisionManifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self.labels = manifest.labels(directory)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        # Without VNNI the processor adds products of UINT8 and INT8 in 16 bits, where they saturate; UINT8 both do not.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if threads:
            options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(directory / manifest.model_file, options, ["CPUExecutionProvider"])

    def infer(self, images: Pixels) -> Logits:
        """See `Classifier.infer`."""
        (logits,) = self._session.run([OUTPUT], {INPUT: checked(images, self.manifest)})
        return np.asarray(logits)
