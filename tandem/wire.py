"""Several arrays as one, to cross a process boundary: each tensor of a Triton call costs time on both sides.

Layout: int32 length of the header, the header (JSON: a list of [name, dtype, shape]), then the arrays' bytes, each
starting at a multiple of 8 bytes from the beginning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 8


def pack(arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """One uint8 array [bytes] that holds `arrays`."""
    header = json.dumps([(name, array.dtype.str, array.shape) for name, array in arrays.items()]).encode()
    parts = [np.int32(len(header)).tobytes() + header, *(array.tobytes() for array in arrays.values())]
    return np.frombuffer(b"".join(part + bytes(-len(part) % ALIGNMENT) for part in parts), np.uint8)


def unpack(packed: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """The arrays by name, as read-only views into `packed`.

    Raises:
        ValueError: this is not what `pack` writes.
    """
    data = packed.tobytes()
    try:
        length = int(np.frombuffer(data, np.int32, 1)[0])
        described = json.loads(data[4 : 4 + length])
        arrays, at = {}, 4 + length
        for name, dtype, shape in described:
            at += -at % ALIGNMENT
            array = np.frombuffer(data, np.dtype(dtype), math.prod(shape), at).reshape(shape)
            arrays[name] = array
            at += array.nbytes
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"a packed step cannot be read: {error}") from None
    return arrays
