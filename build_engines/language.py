"""Language model to engine directory: graph, tokenizer and manifest, complete or not there at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from build_engines.architectures import adapted, require_supported
from build_engines.errors import BuildError
from build_engines.progress import console, quiet, silence_libraries, stage
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.manifest import FILE_NAME, Manifest, ManifestError

CHECKPOINTS = Path(".cache/models")


def build(source: Source, output: Path, recipe: Recipe, *, name: str | None = None, force: bool = False) -> Manifest:
    """Make the directory `output` hold the engine of `source` under `recipe`, and return its manifest.

    An engine that is there with the same build key, and undamaged, is kept; if only run-time settings differ, only
    the manifest is written. Raises `BuildError`; whatever happens, `output` holds the old engine or the new one.
    """
    if recipe.runtime == "tensorrt":
        raise BuildError(
            "this version writes no TensorRT engines; `language SOURCE --runtime tensorrt` checks that one compiles"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with _locked(output.parent):
        _remove_leftovers(output)
        _require_ours(output)
        if not force and (kept := _keep(source, output, recipe)):
            return kept
        console.print(f"building [bold]{output}[/] from {source.name}, {recipe.weights_label}")
        temporary = output.with_name(f".{output.name}.build-{os.getpid()}")
        temporary.mkdir()
        try:
            with _disk_errors(output.parent):
                manifest = _build_into(temporary, source, recipe, name)
            _replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
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
    (export_onnx if recipe.is_onnx else export)(checkpoint, directory, recipe)
    manifest = describe(directory, source, recipe, config, name)
    manifest.write(directory)
    return manifest


def _require_ours(output: Path) -> None:
    """Raise `BuildError` if something else than an engine would be replaced."""
    empty = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not empty and not (output / FILE_NAME).is_file():
        raise BuildError(f"{output} exists and holds no engine; choose another --output or remove it")


def _replace(new: Path, output: Path) -> None:
    """Put the finished directory in place; on failure the old one is put back."""
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(new, output)
    except BaseException:
        if old.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(output: Path) -> None:
    """Remove what a killed build left behind; the lock says that nobody is building here now."""
    for leftover in output.parent.glob(f".{output.name}.build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for old in output.parent.glob(f".{output.name}.old-*"):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, output)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, so that two builds of one engine run one after the other."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage("waiting for another build to finish"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Name a full disk as what it is: the runtime's own writer only says that it failed."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(directory).free
        if getattr(error, "errno", None) == errno.ENOSPC or free < 16 << 20:
            raise BuildError(f"the disk that holds {directory} is full: {free / 1e6:.0f} MB free") from error
        raise
