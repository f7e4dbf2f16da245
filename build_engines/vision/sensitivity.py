"""Which layers of a classifier lose too much in INT8: measured, one layer at a time, and left in full precision.

Weights are what is rounded here: per output channel, symmetric, as all recipes do. In networks that suffer from INT8 a
few layers make most of the error (depthwise convolutions first: Nagel et al., 2019, arXiv:1906.04721).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from build_engines.progress import counted
from build_engines.vision.checkpoint import Images
from tandem.vision.manifest import INPUT, OUTPUT

MOST_ERROR = (
    0.02  # of the logits' spread, by one layer's weights; half of it leaves 3 points more agreement, and less INT8
)
_PICTURES = 8
_KINDS = {"Conv", "Gemm", "MatMul"}


def sensitive_layers(graph: Path, images: Images, most: float = MOST_ERROR) -> list[str]:
    """Names of the graph's nodes whose weights in INT8, all others in fp32, move the logits by more than `most`.

    Args:
        graph: fp32 ONNX.
        images: uint8 [N, size, size, 3], of which a few are taken.
        most: root mean square of the difference, as a share of the logits' spread.
    """
    import onnx
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    model = onnx.load(graph)
    weights = {item.name: item for item in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in _KINDS and node.input[1] in weights]
    taken = {node.input[1] for node in layers}
    # What is an input too can be given anew with every call, so that one session serves for all layers.
    model.graph.input.extend(
        helper.make_tensor_value_info(name, weights[name].data_type, weights[name].dims) for name in sorted(taken)
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    pictures = images[np.linspace(0, len(images) - 1, min(_PICTURES, len(images))).astype(int)]
    (expected,) = session.run([OUTPUT], {INPUT: pictures})
    found = []
    with counted("finding the layers that INT8 harms", len(layers)) as advance:
        for node in layers:
            changed = rounded(numpy_helper.to_array(weights[node.input[1]]), _channel_axis(node))
            (logits,) = session.run([OUTPUT], {INPUT: pictures, node.input[1]: changed})
            if np.sqrt(np.mean((logits - expected) ** 2)) > most * expected.std():
                found.append(node.name)
            advance(1)
    return found


def rounded(weights: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """What INT8 leaves of float32 weights: 255 steps, symmetric, for each index of `axis` its own."""
    others = tuple(index for index in range(weights.ndim) if index != axis)
    step = np.abs(weights).max(others, keepdims=True) / 127
    step[step == 0] = 1  # a channel of zeros
    return np.asarray(np.round(weights / step) * step, np.float32)


def _channel_axis(node: Any) -> int:
    """The axis of the weights that belongs to the output's channels."""
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return 0 if node.op_type == "Conv" or turned else 1
