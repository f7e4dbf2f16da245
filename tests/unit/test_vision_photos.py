"""EfficientNet-Lite0 as it is served: INT8, and still right about photos."""

from __future__ import annotations

import numpy as np
import pytest

from build_engines.vision import build, models, photos, stamps
from build_engines.vision.efficientnet import NAME
from build_engines.vision.recipes import recipe_named
from tandem.vision.classifier import Classifier, load_classifier
from tandem.vision.preprocess import pixels

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    output = models.output_of(NAME)
    origin = models.origin_of(NAME)
    build.build(origin, recipe_named(origin.recipe), output)
    return load_classifier(output, threads=2)


@pytest.mark.parametrize("name", photos.NAMED)
def test_photos_with_a_known_name(name: str, classifier: Classifier) -> None:
    logits = classifier.infer(pixels(photos.opened(name), classifier.manifest.image)[None])[0]
    label = classifier.labels[int(logits.argmax())]
    expected = photos.NAMED[name]
    assert label in (CATS if expected == "cat" else {expected})
    mirrored = np.ascontiguousarray(pixels(photos.opened(name), classifier.manifest.image)[None, ::-1])
    assert not np.array_equal(classifier.infer(mirrored)[0], logits)


def test_no_engine_is_calibrated_with_what_it_is_judged_by(classifier: Classifier) -> None:
    rule = classifier.manifest.image
    seen = {picture.tobytes() for picture in photos.calibration(rule)}
    assert len(seen) == 6 * 13
    assert not seen & {pixels(photos.opened(name), rule).tobytes() for name in photos.NAMED}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("animals/zebra.png", 340), ("animals/cartoon/zebra.png", -1), ("clothes/bow.png", -1), ("a/letter_q.png", -1),
     ("a/zebra2.png", 340)],
)  # fmt: skip
def test_labels_of_stamps(path: str, expected: int) -> None:
    from pathlib import Path

    assert stamps.label_of(Path(path), {"zebra": 340, "bow": 456}) == expected
