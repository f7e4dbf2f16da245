"""Engines for OpenVINO: full precision, bfloat16, and INT8 by NNCF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from build_engines.progress import quiet, silence_libraries
from build_engines.vision.recipes import Material

FILE = "model.xml"


def fp32(material: Material, directory: Path) -> str:
    """Weights and arithmetic in float32."""
    return _save(_read(material), directory)


def bf16(material: Material, directory: Path) -> str:
    """Weights in 16 bits on disk; the runtime computes in bfloat16 if the processor has it, else in float32."""
    return _save(_read(material), directory, halved=True)


def int8(material: Material, directory: Path) -> str:
    """Symmetric weights per channel, activations per tensor, calibrated on pictures.

    Biases of the layers are corrected for what quantization shifts (NNCF's fast bias correction).
    """
    silence_libraries()
    import nncf

    nncf.set_log_level(40)  # logging.ERROR
    images = material.calibration()
    with quiet():
        model = nncf.quantize(
            _read(material), nncf.Dataset([images[index : index + 1] for index in range(len(images))]),
            preset=nncf.QuantizationPreset.MIXED, subset_size=len(images),
        )  # fmt: skip
    return _save(model, directory)


def _read(material: Material) -> Any:
    import openvino as ov

    return ov.Core().read_model(material.graph)


def _save(model: Any, directory: Path, halved: bool = False) -> str:
    import openvino as ov

    ov.save_model(model, directory / FILE, compress_to_fp16=halved)
    return FILE
