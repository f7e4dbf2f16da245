"""From a picture to pixels: the same for every size, mode and shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tandem.vision.preprocess import ImageRule, pixels

RULE = ImageRule(size=224, shorter_side=256)


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture, different everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * rows / max(1, height - 1), 255 * columns / max(1, width - 1)
    return Image.fromarray(np.stack([red, green, (red + green) / 2], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (224, 224), (50, 70), (1000, 257)])
def test_resize_and_centre_crop(size: tuple[int, int]) -> None:
    """One operation gives what resizing and cutting one after the other give."""
    image = picture(*size)
    scale = 256 / min(size)
    whole = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), np.int16)
    found = pixels(image, RULE)
    assert (found.shape, found.dtype) == ((224, 224, 3), np.uint8)
    assert np.abs(found - expected).max() <= 3  # half a pixel of the crop; a wrong cut is tens


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1), (3, 5000)])
def test_extreme_shapes_take_no_extreme_memory(size: tuple[int, int]) -> None:
    """Resized as a whole, 1 x 30000 would become 256 x 7,680,000."""
    assert pixels(Image.new("RGB", size, (10, 20, 30)), RULE).reshape(-1, 3).tolist() == [[10, 20, 30]] * 224**2


def test_a_square_larger_than_the_picture_is_filled_up() -> None:
    found = pixels(Image.new("RGB", (28, 28), (255, 0, 0)), ImageRule(224, 32, background=(0, 0, 9)))
    assert (found[96:128, 96:128] == (255, 0, 0)).all()
    assert (found == (255, 0, 0)).all(-1).sum() == 32 * 32
    assert (found[0, 0] == (0, 0, 9)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode(mode: str) -> None:
    """White is white in each."""
    white = {"I": 65535, "I;16": 65535, "F": 255.0}
    image = Image.new(mode, (40, 30), white[mode]) if mode in white else Image.new("RGB", (40, 30), "white")
    found = pixels(image if mode in white else image.convert("RGBA").convert(mode) if mode == "PA" else
                   image.convert(mode), RULE)  # fmt: skip
    assert found.min() >= 254


def test_transparency_shows_the_background() -> None:
    image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    assert (pixels(image, ImageRule(16, 16, background=(7, 8, 9))) == (7, 8, 9)).all()


def test_orientation_of_cameras_is_heeded(tmp_path: object) -> None:
    import io

    image = Image.new("RGB", (40, 40), "black")
    image.paste((255, 255, 255), (0, 0, 40, 20))  # white above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=95)
    found = pixels(Image.open(file), ImageRule(16, 16))
    assert found[:4].max() < 60
    assert found[-4:].min() > 200


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"shorter_side": 0}, {"resample": "magic"}, {"background": (1, 2, 256)}]
)
def test_rules_that_nothing_can_follow(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong)))):
        ImageRule(**{"size": 8, "shorter_side": 8, **wrong})  # type: ignore[arg-type]
