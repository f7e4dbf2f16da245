"""The gates on perplexity let through what is within the limits, and nothing else."""

import pytest

from build_engines.errors import BuildError
from build_engines.precision_gates import check

FULL = 20.0


def test_within_the_limits_is_fine() -> None:
    check({"fp32": FULL, "fp16": FULL * 1.0009, "int8": FULL * 1.009, "w8a8": FULL * 1.009, "int4": FULL * 1.05})
    check({"fp32": FULL, "fp16": FULL * 0.99, "int8": FULL * 0.99, "w8a8": FULL * 0.99, "int4": FULL * 0.99})


@pytest.mark.parametrize(
    ("weights", "value", "message"),
    [
        ("fp16", FULL * 1.002, r"20\.0400 with fp16 weights is \+0\.20% over 20\.0000 .* at most 0\.1%"),
        ("int8", FULL * 1.02, r"with int8 weights is \+2\.00%.* at most 1\.0%"),
        ("int8", float("nan"), "with int8 weights is"),
        ("w8a8", FULL * 1.02, r"with w8a8 weights is \+2\.00%.* at most 1\.0%"),
        ("int4", FULL * 1.07, r"with int4 weights is \+7\.00%.* at most 6\.0%"),
    ],
)
def test_beyond_them_is_not(weights: str, value: float, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        check(dict.fromkeys(("fp32", "fp16", "int8", "w8a8", "int4"), FULL) | {weights: value})
