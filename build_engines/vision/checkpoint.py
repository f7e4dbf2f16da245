"""A trained classifier as the builds see it, whoever trained it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.vision.preprocess import ImageRule

Images = npt.NDArray[np.uint8]  # [N, size, size, 3], RGB


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Network, names and preprocessing of a classifier."""

    module: Any
    """torch.nn.Module in evaluation mode: float32 [N, 3, size, size], normalized, to logits float32 [N, classes]."""
    architecture: str
    labels: tuple[str, ...]
    image: ImageRule
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Both in units of pixel values, 0 .. 255."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a classifier comes from; cheap to make, so that an engine that is up to date costs nothing."""

    name: str
    """Of the model, for example `resnet50`."""
    source: str
    """Package, directory or hub id, to show."""
    sha256: str
    """Hash over everything that `load` depends on."""
    load: Callable[[], Checkpoint]
    calibration: Callable[[ImageRule], Images]
    """Real pictures, none of them used to validate."""
    recipe: str = "openvino-int8"
    """What it is served with unless the user says otherwise: the fastest that keeps 99 % of the top-1."""
