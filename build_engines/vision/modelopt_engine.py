"""INT8 by NVIDIA's ModelOpt: pairs where TensorRT wants them, symmetric, weights stored in INT8.

The same graph runs on ONNX Runtime, which tells what it costs in accuracy before there is a GPU.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from build_engines.tool_process import run
from build_engines.vision.recipes import Material
from build_engines.vision.tensorrt_engine import require_explicit, save_halved
from build_engines.vision.tensorrt_plan import write_plan
from tandem.vision.manifest import INPUT

FILE = "model.onnx"


def int8(material: Material, directory: Path) -> str:
    """Full precision between the pairs: for ONNX Runtime."""
    _quantize(material, directory / FILE)
    return FILE


def int8_tensorrt(material: Material, directory: Path) -> str:
    """FP16 between the pairs: for TensorRT."""
    import onnx

    partial = directory / "quantized.onnx"
    _quantize(material, partial)
    save_halved(onnx.load(partial), directory / FILE)
    partial.unlink()
    require_explicit(directory / FILE)
    return write_plan(directory / FILE, directory) or FILE


def _quantize(material: Material, target: Path) -> None:
    # In a process of its own, because it changes ONNX Runtime's own quantization for whoever comes after.
    command = [sys.executable, "-m", "modelopt.onnx.quantization", "--quantize_mode=int8", "--log_level=ERROR"]
    # Ranges from the extremes: its entropy method cuts off so much that EfficientNet names a third of what it did.
    command += ["--calibration_method=max", "--calibration_eps", "cpu"]
    # Of its FP16 graph ONNX Runtime made nothing; what is for TensorRT is halved here.
    command += ["--high_precision_dtype=fp32", "--dq_only"]
    with tempfile.TemporaryDirectory(prefix="tandem-modelopt-") as temporary:
        pictures = Path(temporary) / "pictures.npz"
        np.savez(pictures, **{INPUT: material.calibration()})
        command += [f"--onnx_path={material.graph}", f"--output_path={target}", f"--calibration_data_path={pictures}"]
        if material.sensitive:
            command += ["--nodes_to_exclude", *(f"^{re.escape(name)}$" for name in material.sensitive)]
        run(command, "ModelOpt")
