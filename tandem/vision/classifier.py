"""What every classifier offers, whatever runtime computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tandem.vision.manifest import VisionManifest

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
RUNTIMES = ("openvino", "onnxruntime", "torch", "ai-edge-litert")


class Classifier(Protocol):
    """An image classifier; not thread-safe: one for each thread."""

    manifest: VisionManifest
    labels: tuple[str, ...]

    def infer(self, images: Pixels) -> Logits:
        """Class scores of a batch.

        Args:
            images: uint8 [N, size, size, 3], RGB, as `tandem.vision.preprocess.pixels` makes them; N at least 1.

        Returns:
            float32 [N, classes], before any softmax; an array of the caller's own.

        Raises:
            ValueError: another type or shape.
        """
        ...


def load_classifier(directory: Path | str, threads: int | None = None) -> Classifier:
    """Load the classifier in `directory`, whatever runtime its manifest names; `threads` is of the CPU, None: all.

    Raises:
        tandem.manifest.ManifestError: it is missing, damaged or made for another runtime version.
        ValueError: the manifest names a runtime that does not run here.
    """
    directory = Path(directory)
    manifest = VisionManifest.read(directory)
    if manifest.runtime not in RUNTIMES:
        raise ValueError(f"{directory}: runtime {manifest.runtime!r} is not one of: {', '.join(RUNTIMES)}")
    manifest = VisionManifest.load(directory)
    if manifest.runtime == "openvino":
        from tandem.vision.openvino import OpenVinoClassifier

        return OpenVinoClassifier(directory, manifest, threads)
    if manifest.runtime == "torch":
        from tandem.vision.torch import TorchClassifier

        return TorchClassifier(directory, manifest, threads)
    if manifest.runtime == "ai-edge-litert":
        from tandem.vision.litert import LiteRtClassifier

        return LiteRtClassifier(directory, manifest, threads)
    from tandem.vision.onnxruntime import OnnxRuntimeClassifier

    return OnnxRuntimeClassifier(directory, manifest, threads)


def checked(images: Pixels, manifest: VisionManifest) -> Pixels:
    """`images` in one piece of memory; raises `ValueError` unless they are what the engine takes."""
    size = manifest.image.size
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3) or not len(images):
        raise ValueError(f"images: {images.dtype} {images.shape} is not uint8 [N, {size}, {size}, 3] with N >= 1")
    return np.ascontiguousarray(images)
