"""From a picture to the pixels a classifier takes: the one implementation of serving, calibration and evaluation.

The rule is that of the ImageNet classifiers: the shorter side is resized to a length, the centre is cut out as a
square. A square larger than the resized picture is filled up with the background, as torchvision's `CenterCrop` does.
Scaling to the network's numbers (mean, standard deviation) is not done here: it is part of every engine's graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_GREYS = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0, "I;16N": 65535.0}  # value of white


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How a picture becomes pixels; part of every classifier's manifest."""

    size: int
    """Pixels of each side of the square that the network takes."""
    shorter_side: int
    """Pixels to which the shorter side is resized before the centre is cut out."""
    resample: str = "bicubic"
    """One of `RESAMPLING`."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB behind transparent pixels, and around a picture that is smaller than the square."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a rule that nothing can follow."""
        if self.size < 1 or self.shorter_side < 1:
            raise ValueError(f"size {self.size} and shorter_side {self.shorter_side} must be at least 1")
        if self.resample not in RESAMPLING:
            raise ValueError(f"resample {self.resample!r} is not one of {', '.join(RESAMPLING)}")
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background {self.background} is no RGB colour")


def pixels(image: Image.Image, rule: ImageRule) -> npt.NDArray[np.uint8]:
    """The square of `image` that the network looks at.

    Cutting out and resizing are one operation, so memory is bounded by the picture and the square, however long and
    thin the picture is. A JPEG that was not loaded yet is decoded at a fraction of its size where that is enough.

    Args:
        image: of any size and mode; EXIF orientation is heeded.
        rule: of the model.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        OSError: the picture's data are broken (Pillow decodes here what was opened elsewhere).
    """
    image.draft("RGB", (2 * rule.shorter_side, 2 * rule.shorter_side))  # never below what is asked for
    image = to_rgb(ImageOps.exif_transpose(image), rule.background)
    width, height = image.size
    scale = rule.shorter_side / min(width, height)
    across, left, right = _span(width, scale, rule.size)
    down, top, bottom = _span(height, scale, rule.size)
    cut = image.resize((across, down), RESAMPLING[rule.resample], box=(left, top, right, bottom), reducing_gap=3.0)
    if (across, down) != (rule.size, rule.size):
        square = Image.new("RGB", (rule.size, rule.size), rule.background)
        square.paste(cut, ((rule.size - across) // 2, (rule.size - down) // 2))
        cut = square
    return np.asarray(cut)


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """`image` in mode RGB: transparency shows the background, 16-bit greys keep their contrast."""
    if image.mode in _GREYS or image.mode == "F":
        values: npt.NDArray[Any] = np.asarray(image, dtype=np.float32)
        white = _GREYS.get(image.mode, 1.0 if float(values.max(initial=0.0)) <= 1.0 else 255.0)
        grey = np.nan_to_num(values * (255.0 / white)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        behind = Image.new("RGBA", layer.size, (*background, 255))
        return Image.alpha_composite(behind, layer).convert("RGB")
    return image.convert("RGB")


def _span(length: int, scale: float, size: int) -> tuple[int, float, float]:
    """Along one axis: pixels of the result, and which part of the picture they show, around its centre."""
    scaled = length * scale
    result = min(size, max(1, round(scaled)))
    shown = length * min(1.0, result / scaled)
    return result, (length - shown) / 2, (length + shown) / 2
