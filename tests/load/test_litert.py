"""Classifiers converted to LiteRT by its own converter: `make test-litert`, which installs 640 MB into the cache."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_classifier

from build_engines.vision import build as building
from build_engines.vision import litert_engine
from build_engines.vision.recipes import recipe_named
from tandem.vision.classifier import load_classifier
from tandem.vision.litert import LiteRtClassifier
from tandem.vision.manifest import VisionManifest

pytestmark = [pytest.mark.load, pytest.mark.timeout(1800)]
COPY = Path(__file__).parents[1] / "unit/data/tiny_classifier.tflite"


def test_the_converter_makes_what_the_unit_tests_use(tmp_path: Path) -> None:
    """Its answers, that is: `UPDATE=1 make test-litert` writes the file anew after `tiny_classifier` has changed."""
    origin = tiny_classifier.origin(tiny_classifier.write(tmp_path / "tiny"))
    building.build(origin, recipe_named("litert-fp32"), tmp_path / "engine")
    if os.environ.get("UPDATE"):
        COPY.write_bytes((tmp_path / "engine" / litert_engine.FILE).read_bytes())
    images = tiny_classifier.pictures(origin.load().image)
    found = load_classifier(tmp_path / "engine").infer(images)
    (tmp_path / "engine" / litert_engine.FILE).write_bytes(COPY.read_bytes())
    manifest = VisionManifest.read(tmp_path / "engine")
    np.testing.assert_allclose(LiteRtClassifier(tmp_path / "engine", manifest).infer(images), found, atol=1e-5)
