"""796 photos of single things, cut out: the stamps of Tux Paint, from the Debian package tuxpaint-stamps-default.

GPL-2; the package (161 MB) is downloaded and unpacked into the cache, not installed. Engines are validated with them,
never calibrated. Those whose own name is a name of ImageNet have a label, the others tell how far engines agree.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from build_engines.debian import unpack
from build_engines.errors import BuildError
from build_engines.progress import counted, stage
from build_engines.vision.checkpoint import Images
from build_engines.vision.efficientnet import NAMES
from build_engines.wheels import CACHE
from tandem.vision.preprocess import ImageRule, pixels

PACKAGE = "tuxpaint-stamps-default"
UNLABELLED = -1


def stamps(rule: ImageRule, limit: int | None = None) -> tuple[Images, npt.NDArray[np.int64]]:
    """Pictures on the rule's background, and ImageNet's class of each or `UNLABELLED`.

    `limit` takes only so many, evenly spaced. Raises `BuildError` if the package cannot be had.
    """
    paths = sorted(directory().rglob("*.png"))
    if limit:
        paths = [paths[index] for index in np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int)]
    classes = _class_of_names()
    images = np.empty((len(paths), rule.size, rule.size, 3), np.uint8)
    labels = np.full(len(paths), UNLABELLED, np.int64)
    with counted(f"preparing {len(paths)} photos", len(paths)) as advance:
        for index, path in enumerate(paths):
            with Image.open(path) as image:
                images[index] = pixels(image, rule)
            labels[index] = next((classes[name] for name in _names(path) if name in classes), UNLABELLED)
            advance(1)
    return images, labels


def directory(cache: Path | None = None) -> Path:
    """Where the unpacked stamps are; downloaded if they are not in `cache`."""
    target = (cache or CACHE) / PACKAGE
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            stage(f"downloading {PACKAGE} (161 MB)"),
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".stamps.") as temporary,
        ):
            unpack(PACKAGE, Path(temporary))
            found = Path(temporary) / "usr/share/tuxpaint/stamps"
            if len(list(found.rglob("*.png"))) < 600:
                raise BuildError(f"the package {PACKAGE} holds no photos where they used to be")
            kept = Path(temporary) / "kept"
            shutil.copytree(found, kept, ignore=shutil.ignore_patterns("*.ogg", "*.svg", "*.dat", "*.wav"))
            kept.rename(target)
    return target


def _class_of_names() -> dict[str, int]:
    """Names of ImageNet that mean one class only."""
    classes: dict[str, int] = {}
    twice = set()
    for number, names in json.loads(NAMES.read()).items():
        for name in {part.strip().lower() for part in names.split(",")}:
            if name in classes:
                twice.add(name)
            classes[name] = int(number)
    return {name: number for name, number in classes.items() if name not in twice}


def _names(path: Path) -> list[str]:
    """What a stamp calls itself: the first line of its description, and its file name without numbers."""
    names = [re.sub(r"[\d_-]+", " ", path.stem).strip().lower()]
    description = path.with_suffix(".txt")
    if description.is_file():
        line = (description.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[0]
        names.insert(0, re.sub(r"^(a|an|the)\s+", "", line.strip().rstrip(".!").lower()))
    return names
