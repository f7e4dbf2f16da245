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
    model = _read(material)
    with quiet():
        model = nncf.quantize(
            model, nncf.Dataset([images[index : index + 1] for index in range(len(images))]),
            preset=nncf.QuantizationPreset.MIXED, subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_named(model, material.sensitive)),
            # Without VNNI the processor adds products in 16 bits: half of the range keeps them from saturating.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )  # fmt: skip
    return _save(model, directory)


def _read(material: Material) -> Any:
    import openvino as ov

    return ov.convert_model(material.graph)  # folds constants, without which NNCF finds no biases to correct


def _named(model: Any, nodes: list[str]) -> list[str]:
    """What OpenVINO calls these nodes of the graph; biases become operations of their own."""
    wanted = {name + ending for name in nodes for ending in ("", "/WithoutBiases")}
    kinds = ("Convolution", "GroupConvolution", "MatMul")
    operations = [item for item in model.get_ordered_ops() if item.get_type_name() in kinds]
    return [item.get_friendly_name() for item in operations if item.get_friendly_name() in wanted]


def _save(model: Any, directory: Path, halved: bool = False) -> str:
    import openvino as ov

    ov.save_model(model, directory / FILE, compress_to_fp16=halved)
    return FILE
