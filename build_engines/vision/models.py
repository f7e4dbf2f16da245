"""Which classifiers there are: two by name, any other by its directory or hub id."""

from __future__ import annotations

from pathlib import Path

from build_engines.errors import BuildError
from build_engines.vision import efficientnet
from build_engines.vision.checkpoint import Origin

NAMES = (efficientnet.NAME,)


def origin_of(text: str) -> Origin:
    """What `text` means. Raises `BuildError` if there is no such model."""
    if text == efficientnet.NAME:
        return efficientnet.origin()
    raise BuildError(f"{text} is not known: give one of {', '.join(NAMES)}, a directory or a hub id")


def output_of(name: str) -> Path:
    """Where the server looks for the engine of the model `name`."""
    return Path("model_repository") / name / "1" / "engine"
