"""Any image classifier of `transformers.AutoModelForImageClassification`, from a directory or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.progress import quiet, silence_libraries
from build_engines.source import resolve
from build_engines.vision import photos
from build_engines.vision.checkpoint import Checkpoint, Images, Origin
from tandem.vision.preprocess import ImageRule

_PROCESSOR = "preprocessor_config.json"
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def origin(text: str, calibration: Callable[[ImageRule], Images] = photos.calibration) -> Origin:
    """The classifier in a directory or hub repository. Raises `BuildError` if there is none."""
    source = resolve(text)
    if source.is_gguf:
        raise BuildError(f"{text} is a GGUF file; give the directory of an image classifier")
    if not (source.path / _PROCESSOR).is_file():
        raise BuildError(
            f"{text} holds no {_PROCESSOR}, which says how pictures are resized. Is it an image classifier? A language "
            "model is built with `python -m build_engines language`."
        )
    name = re.sub(r"\W+", "_", source.name.rsplit("/", 1)[-1]).strip("_").lower()
    return Origin(name, source.name, source.sha256, lambda: load(source.path), calibration)


def load(directory: Path) -> Checkpoint:
    """Raises `BuildError` if it is no image classifier, or one whose preprocessing cannot be followed."""
    silence_libraries()
    from transformers import AutoModelForImageClassification

    try:
        with quiet():
            network = AutoModelForImageClassification.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BuildError(f"{directory.name} is no image classifier: {reason}") from error
    config = network.config
    labels = tuple(str(config.id2label[number]).replace("\n", " ") for number in range(config.num_labels))
    data = json.loads((directory / _PROCESSOR).read_text(encoding="utf-8"))
    mean, std = normalization(data)
    return Checkpoint(network.eval(), config.model_type, labels, rule_of(data), mean, std)


def rule_of(processor: dict[str, Any]) -> ImageRule:
    """The rule that a `preprocessor_config.json` describes. Raises `BuildError` if it is of another kind.

    A picture that is to be squeezed into a square has its centre cut out instead.
    """
    size = processor.get("size")
    shorter = size if isinstance(size, int) else (size or {}).get("shortest_edge")
    if shorter is None and isinstance(size, dict) and size.get("height") == size.get("width"):
        shorter = size.get("height")
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    side = crop if isinstance(crop, int) or crop is None else crop.get("height")
    if isinstance(crop, dict) and crop.get("height") != crop.get("width"):
        raise BuildError(f"{_PROCESSOR}: crop_size {crop} is no square")
    if not isinstance(shorter, int):
        raise BuildError(f"{_PROCESSOR}: size {size} is neither a number, a shortest_edge nor a square")
    share = processor.get("crop_pct")
    if side is None and share and shorter < 384:  # ConvNeXt's rule: `size` is what remains
        side, shorter = shorter, int(shorter / share)
    side = side or shorter
    resample = _FILTERS.get(processor.get("resample", 2))
    if resample is None:
        raise BuildError(f"{_PROCESSOR}: resample {processor.get('resample')} is not one of {_FILTERS}")
    # A square that is larger than the picture is filled up with zeros there.
    background = (0, 0, 0) if shorter < side else (255, 255, 255)
    return ImageRule(size=side, shorter_side=shorter, resample=resample, background=background)


def normalization(processor: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation in units of pixel values."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    plain = not processor.get("do_normalize", True)
    mean = (0.0,) * 3 if plain else processor.get("image_mean", (0.5,) * 3)
    std = (1.0,) * 3 if plain else processor.get("image_std", (0.5,) * 3)
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise BuildError(f"{_PROCESSOR}: image_mean {mean} and image_std {std} are not three numbers each")
    values = [tuple(round(value / factor, 6) for value in part) for part in (mean, std)]
    return (values[0][0], values[0][1], values[0][2]), (values[1][0], values[1][1], values[1][2])
