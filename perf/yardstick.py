"""How fast the machine is at this moment, told by a network that no change of the product can touch.

Shared machines drift by 20 % and more from one minute to the next. A run measures this before and after each of its
measurements, so that two runs can be compared by what they did per unit of what the machine could do.

The network is made of what a decoding step is made of, products of a few rows with int8 weights that are read from
memory, and runs like one: by OpenVINO, on all cores. Its times follow an engine's more closely than
those of products of NumPy did, on weights that fit in a large cache.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as ops

SECONDS = 0.5
ROWS, HIDDEN, WIDE, LAYERS = 4, 1024, 2048, 32  # 134 MB of weights
NAME = f"{LAYERS} layers of int8 weights, {HIDDEN} x {WIDE}, on OpenVINO {ov.__version__.partition('-')[0]}"


class Speed(NamedTuple):
    """Passes per second of the clock, and per second of CPU time."""

    wall: float
    cpu: float


def speed(seconds: float = SECONDS) -> Speed:
    """Run the network for so long. The first call in a process builds it, in a few seconds."""
    network = _network()
    network.infer()  # fetches the weights into whatever cache has room for them
    passes, started, used = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - started) < seconds:
        network.infer()
        passes += 1
    return Speed(passes / passed, passes / (time.process_time() - used))


@cache
def _network() -> Any:
    rng = np.random.default_rng(0)
    given = ops.parameter([ROWS, HIDDEN], ov.Type.f32)
    values = given
    for _ in range(LAYERS):
        inner = ops.relu(_product(values, HIDDEN, WIDE, rng))
        values = ops.add(values, _product(inner, WIDE, HIDDEN, rng))
        largest = ops.reduce_max(ops.abs(values), ops.constant([1]), True)  # or they would grow from layer to layer
        values = ops.divide(values, ops.add(largest, ops.constant(np.float32(1))))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64",
    }
    request = ov.Core().compile_model(ov.Model([values], [given]), "CPU", options).create_infer_request()
    request.set_input_tensor(ov.Tensor(np.ones((ROWS, HIDDEN), np.float32)))
    return request


def _product(values: Any, given: int, made: int, rng: np.random.Generator) -> Any:
    weights = ops.convert(ops.constant(rng.integers(-127, 127, (made, given), dtype=np.int8)), "f32")
    scales = ops.constant(np.full((made, 1), 1e-3, np.float32))
    return ops.matmul(values, ops.multiply(weights, scales), False, True)
