"""A language model's graph for TensorRT: exported, and checked as far as a machine without a GPU can."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from build_engines.architectures import require_supported
from build_engines.compile_check import compile_check
from build_engines.language import checkpoint_of
from build_engines.progress import console, silence_libraries
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.engines.session import graph_files


def check(source: Source, recipe: Recipe, capabilities: Sequence[str]) -> None:
    """Export `source` and compile it for each compute capability; nothing is kept.

    Raises:
        BuildError: the contract cannot express the model, or it does not compile.
    """
    silence_libraries()
    from build_engines.export import load_config
    from build_engines.language_onnx import export_onnx

    checkpoint = checkpoint_of(source)
    require_supported(load_config(checkpoint).model_type)
    with tempfile.TemporaryDirectory(prefix="tandem-tensorrt-") as directory:
        export_onnx(checkpoint, Path(directory), recipe)
        sizes = dict.fromkeys(capabilities, 0)
        for name in graph_files(Path(directory), "onnx"):
            for capability, size in compile_check(Path(directory) / name, capabilities).items():
                sizes[capability] += size
    each = ", ".join(f"{capability} ({size / 1e6:.0f} MB)" for capability, size in sizes.items())
    console.print(f"  [green]✓[/] {source.name} with {recipe.weights_label} weights compiles for {each}")
    console.print(
        "  [yellow]![/] no engine was written: one is compiled where its GPU is, without --compute-capability"
    )
