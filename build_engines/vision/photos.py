"""Photos that come with Python packages: four with a known name, the others for calibration."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from build_engines.vision.checkpoint import Images
from build_engines.wheels import Member, fetch_all
from tandem.vision.preprocess import ImageRule, pixels

_PACKAGE = "scikit-image==0.26.0"  # sample images, all free to use: skimage/data/README.txt
_HASHES = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "moon.png": "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
    "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    "page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
    "retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}
NAMED = {"chelsea.png": "cat", "coffee.png": "espresso", "rocket.jpg": "missile", "china.jpg": "palace"}
"""What the four are, as ImageNet's names; no engine is calibrated with them."""
_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))


def photo(name: str) -> Path:
    """The path of a photo, downloaded if it is not in the cache. Raises `BuildError` if it cannot be had."""
    if name in _HASHES:
        return _member(name).fetch()
    with resources.as_file(resources.files("sklearn.datasets.images") / name) as path:
        return path


def opened(name: str) -> Image.Image:
    """The photo, decoded."""
    with Image.open(photo(name)) as image:
        return image.convert("RGB")


def calibration(rule: ImageRule) -> Images:
    """Pictures for a classifier of photos: 13 photos, whole and in five parts, every second one mirrored."""
    names = [name for name in _HASHES if name not in NAMED]
    fetch_all([_member(name) for name in names])
    result = []
    for name in [*names, "flower.jpg"]:
        image = opened(name)
        result.append(pixels(image, rule))
        width, height = image.size
        across, down = round(width * 0.6), round(height * 0.6)
        for x, y in _CORNERS:
            left, top = round((width - across) * x), round((height - down) * y)
            part = pixels(image.crop((left, top, left + across, top + down)), rule)
            result.append(part[:, ::-1] if len(result) % 2 else part)
    return np.stack(result)


def _member(name: str) -> Member:
    return Member(_PACKAGE, f"skimage/data/{name}", _HASHES[name], name)
