"""Engines for LiteRT, which TensorFlow Lite has become: the format of phones and boards.

Its converter (`litert-torch`, with jax 640 MB on disk) is no part of the environment: it is installed into the cache
when the first of these engines is built, and run in a process of its own.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from build_engines.output_directory import exclusive
from build_engines.progress import console, quiet
from build_engines.tool_process import run
from build_engines.vision.onnx_graph import with_preprocessing
from build_engines.vision.recipes import Material

FILE = "model.tflite"
TOOLS = Path(".cache/litert")
# jax 0.7.1 is the last that takes numpy 1.26. Without their dependencies: litert-torch asks for an xdsl that no other
# package of ours goes with, and does not need it to convert.
PACKAGES = (
    "litert-torch==0.10.0",
    "litert-converter==0.5.0",
    "jax==0.7.1",
    "jaxlib==0.7.1",
    "opt_einsum==3.4.0",
    "torchao==0.18.0",
)


def fp32(material: Material, directory: Path) -> str:
    """The network in float32, for pictures one by one; the runtime makes room for more."""
    import torch

    installed = tools()
    size = material.checkpoint().image.size
    with tempfile.TemporaryDirectory(prefix="tandem-litert-") as temporary, quiet(), torch.no_grad():
        program = Path(temporary) / "program.pt2"
        example = torch.zeros((1, size, size, 3), dtype=torch.uint8)
        torch.export.save(torch.export.export(with_preprocessing(material.checkpoint()), (example,)), program)
        _convert(program, directory / FILE, installed)
    return FILE


def int8(material: Material, directory: Path) -> str:
    """Weights in INT8 for each output channel, activations in INT8, calibrated on pictures; logits stay float32."""
    fp32(material, directory)
    partial = directory / "quantized.tflite"
    with quiet():
        _quantize(directory / FILE, material.calibration(), partial)
    partial.replace(directory / FILE)
    return FILE


def tools() -> Path:
    """Where the converter is; installed if it is not there. Raises `BuildError` if it cannot be had."""
    target = TOOLS / "-".join(package.split("==")[1] for package in PACKAGES[:2])
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.parent):
        if not target.is_dir():
            partial = target.with_name(f".{target.name}")
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--quiet"]
            console.print("  installing the converter of LiteRT (170 MB to fetch, 640 MB on disk)")
            run([*command, "--target", str(partial), *PACKAGES], "pip")
            partial.rename(target)
    return target


def _convert(program: Path, target: Path, installed: Path) -> None:
    run(
        [sys.executable, "-m", "build_engines.vision.litert_convert", str(program), str(target)],
        "the converter of LiteRT",
        {"TANDEM_LITERT_TOOLS": str(installed.resolve()), "JAX_PLATFORMS": "cpu"},
    )


def _quantize(source: Path, images: Any, target: Path) -> None:
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe
    from ai_edge_quantizer.utils import qsv_utils

    made = quantizer.Quantizer(str(source))
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    kinds = qtyping.TFLOperationName
    for kind in (kinds.SUB, kinds.MUL, kinds.INPUT, kinds.OUTPUT):  # normalization, pixels and logits
        made.update_quantization_recipe(regex=".*", operation_name=kind, algorithm_key="no_quantize")
    # Ranges from the extremes: the quantizer's own moving average cuts off the largest logits, which name the class.
    seen = calibrator.CalibrationInterpreter(
        str(source), calibrator.CalibrationMode.CALIBRATION, qsv_utils.min_max_update
    )
    runner = seen.get_signature_runner("serving_default")
    for at in range(len(images)):
        runner(args_0=images[at : at + 1])
    ranges = seen.get_calibration_results()
    made.quantize(ranges, enable_progress_bar=False).export_model(str(target), overwrite=True)
