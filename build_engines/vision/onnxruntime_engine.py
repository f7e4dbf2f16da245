"""Engines for ONNX Runtime on the CPU: full precision, and INT8 by its static quantization."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build_engines.progress import quiet
from build_engines.vision.checkpoint import Images
from build_engines.vision.recipes import Material
from tandem.vision.manifest import INPUT

FILE = "model.onnx"


def fp32(material: Material, directory: Path) -> str:
    """The exported graph as it is."""
    shutil.copyfile(material.graph, directory / FILE)
    return FILE


def int8(material: Material, directory: Path) -> str:
    """Q/DQ pairs around convolutions and what lies between them: weights signed per channel, activations unsigned."""
    quantize(material, directory / FILE, symmetric=False)
    return FILE


def quantize(material: Material, target: Path, *, symmetric: bool) -> None:
    """Write the graph with Q/DQ pairs, calibrated on pictures.

    `symmetric` is what TensorRT reads: signed activations, zero points of zero, biases left alone, and pairs only in
    front of convolutions and matrix products.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    options: dict[str, Any] = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
    if symmetric:
        options |= {"QuantizeBias": False, "AddQDQPairToWeight": True}
        options["OpTypesToExcludeOutputQuantization"] = ["Conv", "Gemm"]
    with quiet():
        quantize_static(
            material.graph, target, _Reader(material.calibration()), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm"] if symmetric else None,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, nodes_to_exclude=material.sensitive, extra_options=options,
        )  # fmt: skip


class _Reader:
    """Hands the calibration pictures out one at a time, as ONNX Runtime wants them."""

    def __init__(self, images: Images) -> None:
        self._images: Iterator[Any] = iter([{INPUT: images[index : index + 1]} for index in range(len(images))])

    def get_next(self) -> Any:
        """The next picture, None at the end."""
        return next(self._images, None)

    def __iter__(self) -> Iterator[Any]:
        return self._images

    def __next__(self) -> Any:
        return next(self._images)
