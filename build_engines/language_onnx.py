"""A checkpoint to the ONNX graph of build_engines.language_contract."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from build_engines.describe import write_tokenizer_files
from build_engines.export import load_model
from build_engines.progress import quiet, stage
from build_engines.recipe import Recipe
from build_engines.smooth_quant import Smoothed, calibration_texts, smooth


def export_onnx(checkpoint: Path, output: Path, recipe: Recipe) -> None:
    """Write `model.onnx` and its weights to `output` from the Hugging Face directory `checkpoint`, or a graph a stage.

    Raises:
        BuildError: the contract cannot express the model.
    """
    from build_engines.language_architecture import Architecture
    from build_engines.language_contract import export
    from tandem.engines.slots import SPARE_POSITIONS

    with stage("loading the checkpoint"), quiet():
        model = load_model(checkpoint, recipe)
    smoothed = _calibrated(model, checkpoint, recipe) if recipe.weights == "w8a8" else None
    architecture = Architecture(model, recipe.length + SPARE_POSITIONS)
    with stage(f"writing the ONNX graph with {recipe.weights_label} weights"), quiet():
        in_half = recipe.runtime == "tensorrt" and recipe.weights != "fp16"
        weights = f"{recipe.weights}-fp16" if in_half else recipe.weights
        for number in range(recipe.stages):
            export(
                architecture,
                output,
                weights=weights,
                length=recipe.length,
                kv_cache=recipe.kv_cache,
                fixed_length=recipe.runtime == "tensorrt",
                stage=(number, recipe.stages),
                group_size=recipe.group_size,
                smoothed=smoothed,
            )


def _calibrated(model: Any, checkpoint: Path, recipe: Recipe) -> dict[str, Smoothed]:
    """What `smooth` finds out about the model, on text in its own tokens."""
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory(prefix="tandem-tokenizer-") as directory:
        write_tokenizer_files(checkpoint, Path(directory))
        tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
    texts = calibration_texts(tokenizer, recipe.calibration)
    with stage("calibrating activations on real text"), quiet():
        return smooth(model, texts)
