"""Image classifier on PyTorch: the baseline of the report; nothing is served with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tandem.vision.classifier import Logits, Pixels, checked
from tandem.vision.manifest import VisionManifest


class TorchClassifier:
    """Implements `tandem.vision.classifier.Classifier`."""

    def __init__(self, directory: Path, manifest: VisionManifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self.labels = manifest.labels(directory)
        if threads:
            torch.set_num_threads(threads)
        self._module = torch.jit.load(directory / manifest.model_file, map_location="cpu").eval()

    def infer(self, images: Pixels) -> Logits:
        """See `Classifier.infer`."""
        with torch.inference_mode():
            return np.array(self._module(torch.from_numpy(checked(images, self.manifest))).numpy())
