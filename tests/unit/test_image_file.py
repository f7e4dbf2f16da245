"""Image files → pixels: every colour mode, every limit, and hostile files, without a server."""

from __future__ import annotations

import io
import subprocess
import sys
from random import Random

import numpy as np
import pytest
from hostile_images import encode, hostile_images, many_scans, originals, photo, png, png_bomb
from PIL import Image

from tandem.errors import InvalidRequest
from tandem.vision.image_file import ImageLimits, decode
from tandem.vision.preprocess import ImageRule, pixels

RULE = ImageRule(size=224, shorter_side=256)
LIMITS = ImageLimits()
SEED = 11


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, RULE, limits)
    return str(caught.value)


def colour(data: bytes) -> list[int]:
    """The mean colour of what the classifier sees."""
    return decode(data, RULE, LIMITS).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
def test_pixels_are_those_of_the_rule(format):
    data = encode(photo(), format, **({"lossless": True} if format == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        wanted = pixels(image, RULE)
    found = decode(data, RULE, LIMITS)
    assert found.dtype == np.uint8
    assert found.shape == (224, 224, 3)
    assert (found == wanted).all()


def test_a_large_jpeg_is_decoded_at_a_fraction():
    large = photo().resize((4_800, 3_200))
    data = encode(large, "JPEG", quality=95)
    small = ImageLimits(max_pixels=4_000_000)  # 15 million at full size, 1 million as decoded
    difference = decode(data, RULE, small).astype(int) - pixels(large, RULE)
    assert np.abs(difference).mean() < 2
    assert "at most 4000000" in refusal(encode(large, "PNG", compress_level=1), small)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    square = Image.new("RGB", (64, 64), "black")
    square.paste("red", (0, 0, 32, 32))
    undone = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that brings the picture into that state
    stored = square if orientation == 1 else square.transpose(Image.Transpose(undone[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encode(stored, "PNG", exif=exif), ImageRule(size=64, shorter_side=64), LIMITS)
    assert (found == np.asarray(square)).all()


def test_modes_keep_their_colours():
    red, half = (200, 16, 48), Image.new("RGBA", (40, 40), (200, 16, 48, 0))
    half.paste((*red, 255), (0, 0, 40, 20))
    assert colour(encode(Image.new("RGB", (40, 40), red), "PNG")) == list(red)
    assert colour(encode(Image.new("RGB", (40, 40), red).quantize(4), "PNG")) == list(red)
    assert colour(encode(half, "PNG")) == pytest.approx([(value + 255) / 2 for value in red], abs=2)  # on white
    assert colour(encode(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG")) == pytest.approx([255, 0, 0], abs=3)
    assert colour(encode(Image.fromarray(np.full((40, 40), 0x8000, np.uint16)), "PNG")) == pytest.approx(
        [127.5] * 3, abs=1
    )
    assert colour(png(4, 4, (b"\0" + b"\x20\x00\x80\x00\xff\xff" * 4) * 4, depth=16, colour=2)) == [32, 128, 255]


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    assert colour(encode(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)) == [255, 0, 0]
    assert colour(encode(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])) == [255, 0, 0]


def test_refusals_name_the_reason():
    assert refusal(b"") == "image: is empty (0 bytes)"
    assert refusal(b"x" * 11, ImageLimits(max_bytes=10)) == "image: has 11 bytes; at most 10 are accepted"
    assert "it begins with b'<html>'" in refusal(b"<html>")
    assert "image: is 9000 x 9000 pixels, 81000000 in all" in refusal(png(9_000, 9_000, b""))
    assert "damaged or cut off" in refusal(originals()["JPEG"][:-500])
    assert "JPEG of 2" in refusal(many_scans(200))
    assert decode(many_scans(20), RULE, LIMITS).shape == (224, 224, 3)


def test_hostile_images_are_refused_or_decoded():
    complaints = []
    cases = list(hostile_images(SEED, 120))
    for case in cases:
        try:
            decode(case.data, RULE, LIMITS)
            said = None
        except InvalidRequest as error:
            said = str(error)
        if said is None and case.says is not None and not case.may_decode:
            complaints.append(f"{case.name}: was decoded")
        if said is not None and (case.says is None or case.says not in said or not said.startswith("image: ")):
            complaints.append(f"{case.name}: {said}")
    assert complaints == []
    assert [case.data for case in cases] == [case.data for case in hostile_images(SEED, 120)]


_PEAK = """
import re, sys
from pathlib import Path
from tandem.errors import InvalidRequest
from tandem.vision.image_file import ImageLimits, decode
from tandem.vision.preprocess import ImageRule
def peak():  # getrusage's is inherited from the process that forked this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
limits = ImageLimits(max_pixels=int(sys.argv[1]))
data = sys.stdin.buffer.read()
before = peak()
try:
    decode(data, ImageRule(size=224, shorter_side=256), limits)
    said = "decoded"
except InvalidRequest:
    said = "refused"
print(said, (peak() - before) // 1024)
"""


@pytest.mark.parametrize(("max_pixels", "outcome"), [(LIMITS.max_pixels, "refused"), (1 << 30, "decoded")])
def test_a_bomb_is_refused_before_it_takes_memory(max_pixels, outcome):
    """The second case is the control: without the limit the same file takes the memory."""
    command = [sys.executable, "-c", _PEAK, str(max_pixels)]
    answer = subprocess.run(command, input=png_bomb(Random(1)).data, capture_output=True, check=True).stdout
    said, megabytes = answer.decode().split()
    assert said == outcome
    assert (int(megabytes) > 100) == (outcome == "decoded")
