"""A checkpoint to the ONNX graph of build_engines.language_contract."""

from __future__ import annotations

from pathlib import Path

from build_engines.export import load_model
from build_engines.progress import quiet, stage
from build_engines.recipe import Recipe


def export_onnx(checkpoint: Path, output: Path, recipe: Recipe) -> None:
    """Write `model.onnx` and its weights to `output` from the Hugging Face directory `checkpoint`, or a graph a stage.

    Raises:
        BuildError: the contract cannot express the model.
    """
    from build_engines.language_architecture import Architecture
    from build_engines.language_contract import export
    from tandem.engines.slots import SPARE_POSITIONS

    with stage("loading the checkpoint"), quiet():
        architecture = Architecture(load_model(checkpoint, recipe), recipe.length + SPARE_POSITIONS)
    with stage(f"writing the ONNX graph with {recipe.weights_label} weights"), quiet():
        in_half = recipe.runtime == "tensorrt" and recipe.weights.startswith("int")
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
            )
