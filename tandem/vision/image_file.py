"""Bytes of an image file → the pixels a classifier takes. What is hostile or damaged gets an error that says why.

Nothing is decoded before the header's dimensions have been checked, so that memory is bounded by `max_pixels`.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tandem.errors import InvalidRequest
from tandem.vision.preprocess import ImageRule, pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# A JPEG is decoded at a fraction of its size where the rule allows. What it needs at full size, and only if it is
# progressive, are its coefficients: a quarter of what conversions of the other formats take.
JPEG_FACTOR = 4
# Each scan of a progressive JPEG costs a pass over all its blocks and may take a few bytes only: without a limit a
# small file keeps a core busy for minutes. Encoders write about ten.
MAX_JPEG_SCANS = 100
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is decoded at most. Decoding takes up to about 25 bytes of memory for each of `max_pixels`."""

    max_bytes: int = 32 << 20  # of the file
    max_pixels: int = 16 << 20  # width times height as decoded


def decode(data: bytes, rule: ImageRule, limits: ImageLimits) -> npt.NDArray[np.uint8]:
    """The square of the picture in `data` that a classifier looks at.

    Args:
        data: a JPEG, PNG, WebP or GIF file of any colour mode; of an animation the first frame counts.
        rule: of the classifier.
        limits: what is decoded at most.

    Returns:
        uint8 [rule.size, rule.size, 3], RGB.

    Raises:
        InvalidRequest: it is not an image, damaged, or beyond a limit; the message begins with "image" and says which.
    """
    if not data:
        raise InvalidRequest("image: is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise InvalidRequest(f"image: has {len(data)} bytes; at most {limits.max_bytes} are accepted")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, rule, limits)
            if image.format in ("JPEG", "MPO"):
                _check_scans(data)
            _turn_upright(image)
            return pixels(image, rule)
    except (InvalidRequest, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise InvalidRequest(f"image: has far more than the {limits.max_pixels} pixels that are accepted") from None
    except UnidentifiedImageError:
        begin = bytes(data[:8])
        raise InvalidRequest(f"image: is no readable JPEG, PNG, WebP or GIF file; it begins with {begin!r}") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and others
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise InvalidRequest(f"image: is damaged or cut off: {reason}") from None


def _check_size(image: Image.Image, rule: ImageRule, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height < 1:
        raise InvalidRequest(f"image: is {width} x {height} pixels")
    image.draft("RGB", (2 * rule.shorter_side, 2 * rule.shorter_side))  # as `pixels` does
    decoded = image.size[0] * image.size[1]
    if decoded > limits.max_pixels or width * height > limits.max_pixels * JPEG_FACTOR:
        raise InvalidRequest(
            f"image: is {width} x {height} pixels, {width * height} in all; at most {limits.max_pixels} are accepted"
            f" ({limits.max_pixels * JPEG_FACTOR} in a JPEG that can be decoded at half its size)"
        )


def _check_scans(data: bytes) -> None:
    scans = data.count(_START_OF_SCAN)
    if scans > MAX_JPEG_SCANS:
        raise InvalidRequest(f"image: is a JPEG of {scans} scans; at most {MAX_JPEG_SCANS} are accepted")


def _turn_upright(image: Image.Image) -> None:
    """Follow the EXIF orientation, here because one that cannot be read is ignored: the pixels are what matters."""
    image.load()
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
