"""Language model to engine directory: graph, tokenizer and manifest, complete or not there at all."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from build_engines.architectures import adapted, require_supported
from build_engines.output_directory import locked, replaced
from build_engines.progress import console, quiet, silence_libraries, stage
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.engines.session import graph_files
from tandem.manifest import FILE_NAME, Manifest, ManifestError

CHECKPOINTS = Path(".cache/models")


def build(source: Source, output: Path, recipe: Recipe, *, name: str | None = None, force: bool = False) -> Manifest:
    """Make the directory `output` hold the engine of `source` under `recipe`, and return its manifest.

    An engine that is there with the same build key, and undamaged, is kept; if only run-time settings differ, only
    the manifest is written. Raises `BuildError`; whatever happens, `output` holds the old engine or the new one.
    """
    with locked(output):
        if not force and (kept := _keep(source, output, recipe)):
            return kept
        console.print(f"building [bold]{output}[/] from {source.name}, {recipe.weights_label}")
        with replaced(output) as temporary:
            manifest = _build_into(temporary, source, recipe, name)
    size = sum(item.stat().st_size for item in output.iterdir()) / 1e6
    console.print(f"  [green]✓[/] {output}: {size:.0f} MB, {manifest.weights} weights, {manifest.architecture}")
    return manifest


def checkpoint_of(source: Source, cache: Path = CHECKPOINTS) -> Path:
    """The source as a Hugging Face directory; a GGUF file is converted once and kept in `cache`."""
    if not source.is_gguf:
        return source.path
    from build_engines.gguf_checkpoint import convert

    cache.mkdir(parents=True, exist_ok=True)
    return convert(source.path, cache / f"{source.path.stem}-{source.sha256[:12]}")


def _keep(source: Source, output: Path, recipe: Recipe) -> Manifest | None:
    """The manifest of the engine in `output` if it is what would be built; None if it must be built."""
    if not (output / FILE_NAME).is_file():
        return None
    try:
        manifest = Manifest.load(output)
    except ManifestError as error:
        console.print(f"  [yellow]![/] {str(error).split(' Build it again')[0]}")
        return None
    if manifest.build_key != recipe.build_key(source.sha256):
        return None
    settings = adapted(recipe, manifest.architecture)
    wanted = dataclasses.replace(
        manifest,
        activations=settings.activations,
        kv_cache=settings.kv_cache,
        dynamic_quantization_group=settings.dynamic_quantization_group,
    )
    if wanted == manifest:
        console.print(f"  [green]✓[/] {output} is up to date ({manifest.weights}, {manifest.source})")
        return manifest
    wanted = dataclasses.replace(wanted, quality=None)  # it was measured with the other settings
    wanted.write(output)
    console.print(f"  [green]✓[/] {output} is up to date; its run-time settings were changed")
    return wanted


def _build_into(directory: Path, source: Source, recipe: Recipe, name: str | None) -> Manifest:
    silence_libraries()
    with stage("loading the libraries"), quiet():
        if not recipe.is_onnx:
            import nncf  # noqa: F401
            import optimum.intel  # noqa: F401
        import torch  # noqa: F401
    from build_engines.describe import describe, write_tokenizer_files
    from build_engines.export import export, load_config
    from build_engines.language_onnx import export_onnx

    checkpoint = checkpoint_of(source)
    config = load_config(checkpoint)
    require_supported(config.model_type)
    recipe = adapted(recipe, config.model_type)
    with stage("writing the tokenizer"), quiet():
        write_tokenizer_files(checkpoint, directory)
    if recipe.runtime == "tensorrt":
        from build_engines.language_plan import write_plan

        with tempfile.TemporaryDirectory(prefix="tandem-tensorrt-") as graph:
            export_onnx(checkpoint, Path(graph), recipe)
            for name in graph_files(Path(graph), "onnx"):
                write_plan(Path(graph) / name, directory)
    else:
        (export_onnx if recipe.is_onnx else export)(checkpoint, directory, recipe)
    manifest = describe(directory, source, recipe, config, name)
    manifest.write(directory)
    return manifest
