"""Broken and hostile image files, made from real ones by a seeded generator, and what a server must do with each."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import sklearn.datasets
from PIL import Image

PHOTOS = Path(sklearn.datasets.__file__).parent / "images"  # china.jpg and flower.jpg
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class HostileImage:
    """One file.

    Attributes:
        name: what was done to it.
        data: its bytes.
        says: a word of the error that it must get; "" where any reason will do; None: it must be classified.
        may_decode: True where it may be classified as well: a flipped bit is not always noticed.
    """

    name: str
    data: bytes
    says: str | None = ""
    may_decode: bool = False


@cache
def photo(name: str = "china.jpg") -> Image.Image:
    """A real photo, 640 x 427, RGB."""
    with Image.open(PHOTOS / name) as image:
        return image.convert("RGB")


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@cache
def originals() -> dict[str, bytes]:
    """Undamaged files of every format, 160 pixels wide."""
    small = photo().resize((160, 107))
    return {
        "JPEG": encode(small, "JPEG"),
        "progressive JPEG": encode(small, "JPEG", progressive=True),
        "PNG": encode(small, "PNG"),
        "WebP": encode(small, "WEBP"),
        "lossless WebP": encode(small, "WEBP", lossless=True),
        "GIF": encode(small, "GIF"),
    }


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG from its parts; `rows` are not compressed yet."""
    return _png(width, height, zlib.compress(rows), depth, colour, extra)


def _png(width: int, height: int, compressed: bytes, depth: int, colour: int, extra: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = png_chunk(b"IDAT", compressed)
    return PNG_MAGIC + header + extra + data + png_chunk(b"IEND", b"")


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = originals()["progressive JPEG"]
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def truncated(random: Random) -> HostileImage:
    name, data = random.choice(list(originals().items()))
    kept = random.randrange(1, len(data) * 9 // 10)
    return HostileImage(f"{name}, {kept} of {len(data)} bytes", data[:kept], may_decode="GIF" in name)


def flipped(random: Random) -> HostileImage:
    name, data = random.choice(list(originals().items()))
    damaged = bytearray(data)
    count = random.choice((1, 2, 8, 64))
    for _ in range(count):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return HostileImage(f"{name}, {count} bits flipped", bytes(damaged), may_decode=True)


def zeroed(random: Random) -> HostileImage:
    name, data = random.choice(list(originals().items()))
    start = random.randrange(12, len(data) - 100)
    end = min(len(data), start + random.randrange(50, 4000))
    return HostileImage(
        f"{name}, bytes {start} to {end} zero", data[:start] + bytes(end - start) + data[end:], "", True
    )


def wrong_magic(random: Random) -> HostileImage:
    name, data = random.choice(list(originals().items()))
    other = random.choice((b"\0" * 12, b"BM" + bytes(10), b"%PDF-1.7 \n%%", b"II*\0" + bytes(8), b"\x7fELF" + bytes(8)))
    return HostileImage(f"{name} that begins with {other[:4]!r}", other + data[12:], "no readable")


def foreign_magic(random: Random) -> HostileImage:
    """A file that begins as one format and goes on as another."""
    first, second = random.sample(sorted(originals()), 2)
    head = originals()[first][: random.choice((4, 8, 12, 20))]
    return HostileImage(f"{second} that begins as {first}", head + originals()[second][len(head) :], "", True)


def huge_png(random: Random) -> HostileImage:
    width, height = random.choice(((50_000, 50_000), (2**31 - 1, 2**31 - 1), (5_000, 4_000), (2**31 - 1, 1)))
    return HostileImage(f"PNG that claims {width} x {height}", png(width, height, b"\0" * 100), "pixels")


def huge_jpeg(random: Random) -> HostileImage:
    data = bytearray(originals()["JPEG"])
    frame = data.index(b"\xff\xc0")
    height, width = random.choice(((65_500, 65_500), (65_535, 65_535), (20_000, 30_000)))
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return HostileImage(f"JPEG that claims {width} x {height}", bytes(data), "pixels")


def huge_gif(random: Random) -> HostileImage:
    data = bytearray(originals()["GIF"])
    data[6:10] = struct.pack("<HH", 65_535, random.choice((65_535, 40_000)))
    return HostileImage("GIF that claims 65535 pixels a side", bytes(data), "pixels")


def huge_webp(random: Random) -> HostileImage:
    """34 bytes of lossless WebP that are 16383 x 16383 pixels of one colour."""
    body = b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14) + b"\x07\x10\x11\x11\x88\x88\xfe\x07\x00"
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body
    return HostileImage("WebP bomb", b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk, "pixels")


@cache
def _bomb(side: int, colour: int, channels: int) -> bytes:
    return _png(side, side, _compressed_zeros((1 + side * channels) * side), 8, colour)


@cache
def _compressed_zeros(count: int) -> bytes:
    """So many zeros, without ever having them in memory."""
    compressor, block = zlib.compressobj(1), bytes(1 << 20)
    parts = [compressor.compress(block[: min(len(block), count - at)]) for at in range(0, count, len(block))]
    return b"".join(parts) + compressor.flush()


def png_bomb(random: Random) -> HostileImage:
    """A few kilobytes that are 100 MB and more of pixels."""
    side = random.choice((6_000, 9_000))
    return HostileImage(f"PNG bomb of {side} x {side}", _bomb(side, 0, 1), "pixels")


def largest_png(random: Random) -> HostileImage:
    """As many pixels as are accepted, with transparency, which takes most memory."""
    return HostileImage("RGBA PNG of 4096 x 4096", _bomb(4_096, 6, 4), None)


def text_bomb(random: Random) -> HostileImage:
    """A PNG with a comment or a colour profile that expands to 100 MB."""
    kind, head = random.choice(((b"zTXt", b"Comment\0\0"), (b"iCCP", b"profile\0\0")))
    extra = png_chunk(kind, head + _compressed_zeros(100_000_000))
    return HostileImage(f"PNG with a bomb in {kind!r}", png(8, 8, bytes(9 * 8), extra=extra), "", True)


def lying_chunk(random: Random) -> HostileImage:
    data = bytearray(originals()["PNG"])
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = struct.pack(">I", random.choice((0, 0x7FFFFFFF, 0xFFFFFFFF)))
    return HostileImage("PNG with a wrong length", bytes(data), may_decode=True)


def scan_bomb(random: Random) -> HostileImage:
    scans = random.choice((200, 2_000))
    return HostileImage(f"JPEG of {scans} scans", many_scans(scans), "scans")


def empty(random: Random) -> HostileImage:
    return HostileImage("no bytes", b"", "empty")


def other_data(random: Random) -> HostileImage:
    name, data = random.choice(
        (
            ("text", b"this is no image"),
            ("HTML", b"<!doctype html><img src=x>"),
            ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
            ("PDF", b"%PDF-1.7\n1 0 obj <<>> endobj"),
            ("JSON", b'{"image": "iVBORw0KGgo="}'),
            ("zeros", bytes(random.randrange(1, 5_000))),
            ("noise", random.randbytes(random.randrange(1, 5_000))),
            ("one byte", b"\xff"),
            ("base64", b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"),
            ("BMP", encode(photo().resize((8, 8)), "BMP")),
            ("TIFF", encode(photo().resize((8, 8)), "TIFF")),
        )
    )
    return HostileImage(name, data, "no readable")


@cache
def _animation(frames: int) -> bytes:
    pictures = [Image.new("P", (32, 32), frame % 256) for frame in range(frames)]
    return encode(pictures[0], "GIF", save_all=True, append_images=pictures[1:], loop=0, duration=0)


def gif_loop(random: Random) -> HostileImage:
    """An animation without end: only its first frame is looked at."""
    frames = random.choice((2, 500))
    return HostileImage(f"GIF of {frames} frames", _animation(frames), None)


def gif_frame_outside(random: Random) -> HostileImage:
    """A frame much larger than the screen of its GIF."""
    data = bytearray(originals()["GIF"])
    frame = data.index(b"\x2c", 13 + 3 * 256)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    return HostileImage("GIF with a frame of 60000 x 60000", bytes(data), "pixels")


def odd_mode(random: Random) -> HostileImage:
    """Every colour mode there is, with and without transparency: all must be classified."""
    name = random.choice(sorted(odd_modes()))
    return HostileImage(name, odd_modes()[name], None)


@cache
def odd_modes() -> dict[str, bytes]:
    """Files that are unusual and in order."""
    small = photo().resize((80, 53))
    grey16 = Image.fromarray(np.asarray(small.convert("L"), np.uint16) * 257)
    rgb16 = b"".join(b"\0" + bytes([v, v, 99, 99, 7, 7]) * 5 for v in (0, 128, 255))
    palette = small.quantize(16)
    turned = {f"orientation {n}": encode(small, "JPEG", exif=_orientation(n)) for n in (2, 5, 6, 8, 999)}
    return turned | {
        "1 bit": encode(small.convert("1"), "PNG"),
        "grey": encode(small.convert("L"), "JPEG"),
        "grey and alpha": encode(small.convert("LA"), "PNG"),
        "palette": encode(palette, "PNG"),
        "palette with a transparent colour": encode(palette, "PNG", transparency=3),
        "RGBA": encode(small.convert("RGBA"), "PNG"),
        "RGBA WebP": encode(small.convert("RGBA"), "WEBP"),
        "CMYK": encode(small.convert("CMYK"), "JPEG"),
        "16 bits of grey": encode(grey16, "PNG"),
        "16 bits of RGB": png(5, 3, rgb16, depth=16, colour=2),
        "one pixel": encode(small.crop((0, 0, 1, 1)), "PNG"),
        "20000 x 1": encode(small.resize((20_000, 1)), "PNG"),
        "1 x 20000": encode(small.resize((1, 20_000)), "PNG"),
        "EXIF of nonsense": encode(small, "JPEG", exif=b"Exif\0\0" + Random(1).randbytes(200)),
    }


def _orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


# How often each is drawn.
MUTATIONS: dict[Callable[[Random], HostileImage], int] = {
    truncated: 18, flipped: 18, zeroed: 8, wrong_magic: 6, foreign_magic: 6, huge_png: 4, huge_jpeg: 4, huge_gif: 2,
    huge_webp: 2, png_bomb: 3, largest_png: 1, text_bomb: 2, lying_chunk: 3, scan_bomb: 3, empty: 2, other_data: 8,
    gif_loop: 3, gif_frame_outside: 2, odd_mode: 12,
}  # fmt: skip


def hostile_images(seed: int, count: int) -> Iterator[HostileImage]:
    """`count` files, the same for the same seed, each mutation at least once."""
    random = Random(seed)
    drawn = [*MUTATIONS, *random.choices(list(MUTATIONS), list(MUTATIONS.values()), k=count - len(MUTATIONS))]
    for mutation in drawn:
        yield mutation(random)
