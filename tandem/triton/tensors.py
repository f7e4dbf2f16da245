"""What Triton's Python backend hands over, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from tandem.wire import pack, unpack


def to_tensor(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> pb_utils.Tensor:
    """One UINT8 tensor that holds all arrays."""
    return pb_utils.Tensor(name, pack(arrays))


def to_arrays(tensor: pb_utils.Tensor) -> dict[str, npt.NDArray[Any]]:
    """The arrays in a tensor that `to_tensor` made. Raises `ValueError` if it did not."""
    return unpack(tensor.as_numpy().astype(np.uint8, copy=False))


def parameters_of(model_config: Mapping[str, Any]) -> dict[str, str]:
    """The `parameters` of a parsed `config.pbtxt`."""
    return {name: value["string_value"] for name, value in model_config.get("parameters", {}).items()}
