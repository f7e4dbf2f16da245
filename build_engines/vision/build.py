"""Classifier to engine directory: runtime's files, labels and manifest, complete or not there at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np

from build_engines.errors import BuildError
from build_engines.output_directory import locked, replaced
from build_engines.progress import console, stage
from build_engines.vision.checkpoint import Checkpoint, Images, Origin
from build_engines.vision.onnx_graph import graph_key, graph_of
from build_engines.vision.recipes import LEAST_AGREEMENT, Material, Recipe
from build_engines.vision.sensitivity import MOST_ERROR, sensitive_layers
from tandem.manifest import FILE_NAME, ManifestError, sha256_of_file
from tandem.vision.classifier import RUNTIMES, load_classifier
from tandem.vision.manifest import LABELS_FILE, VisionManifest

_VERSION = 2  # raise it when a change of this package changes the engines it writes
_sensitive: dict[Path, list[str]] = {}  # by graph: measured once, however many recipes a process builds
_CHECKED = 16  # pictures on which an engine is compared with full precision when it is built


def build(
    origin: Origin, recipe: Recipe, output: Path, *, force: bool = False, least_agreement: float = LEAST_AGREEMENT
) -> VisionManifest:
    """Make the directory `output` hold the engine of `origin` by `recipe`, and return its manifest.

    An engine that is there with the same build key, and undamaged, is kept. Whatever happens, `output` holds the old
    engine or the new one.

    Raises:
        BuildError: it cannot be built, or chooses the class of full precision on a smaller share of the pictures that
            are compared than `least_agreement`.
    """
    key = build_key(origin, recipe)
    with locked(output):
        if not force and (kept := _keep(output, key)):
            _require_agreement(kept, least_agreement)
            return kept
        console.print(f"building [bold]{output}[/] from {origin.source}, {recipe.name}")
        with replaced(output) as temporary:
            manifest = _build_into(temporary, origin, recipe, key)
            _require_agreement(manifest, least_agreement)
    size = sum(item.stat().st_size for item in output.iterdir()) / 1e6
    console.print(f"  [green]✓[/] {output}: {size:.1f} MB, {_words(manifest)}")
    return manifest


def _require_agreement(manifest: VisionManifest, least: float) -> None:
    if manifest.quality and manifest.quality["agreement"] < least:
        raise BuildError(
            f"{manifest.recipe} chooses the class that full precision does on only {manifest.quality['agreement']:.0%} "
            f"of {manifest.quality['images']} pictures: take another recipe, or allow it with --least-agreement 0"
        )


def build_key(origin: Origin, recipe: Recipe) -> str:
    """Hash over everything that the engine's files depend on."""
    tools = {tool: version_of(tool) for tool in (recipe.runtime, *recipe.tools)}
    parts = {"builder": _VERSION, "graph": graph_key(origin), "recipe": recipe.name, "tools": tools}
    if recipe.mixed:
        parts["most_error"] = MOST_ERROR
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def version_of(distribution: str) -> str:
    """The installed version; `none installed`, as the check at load says, where a GPU's runtime is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "none installed"


def _keep(output: Path, key: str) -> VisionManifest | None:
    if not (output / FILE_NAME).is_file():
        return None
    try:
        manifest = VisionManifest.load(output)
    except ManifestError as error:
        console.print(f"  [yellow]![/] {str(error).split(' Build it again')[0]}")
        return None
    if manifest.build_key != key:
        return None
    console.print(f"  [green]✓[/] {output} is up to date ({manifest.recipe}, {manifest.name})")
    return manifest


def _build_into(directory: Path, origin: Origin, recipe: Recipe, key: str) -> VisionManifest:
    with stage(f"loading {origin.name}"):
        checkpoint = origin.load()
    graph = graph_of(origin, checkpoint)
    pictures: list[Images] = []

    def calibration() -> Images:
        if not pictures:
            pictures.append(origin.calibration(checkpoint.image))
        return pictures[0]

    if recipe.mixed and graph not in _sensitive:
        _sensitive[graph] = sensitive_layers(graph, calibration())
    with stage(f"{recipe.name}: {recipe.text}"):
        model_file = recipe.make(Material(lambda: checkpoint, graph, calibration, _sensitive.get(graph, [])), directory)
    (directory / LABELS_FILE).write_text("\n".join(checkpoint.labels) + "\n", encoding="utf-8")
    manifest = VisionManifest(
        name=origin.name,
        architecture=checkpoint.architecture,
        source=origin.source,
        source_sha256=origin.sha256,
        recipe=recipe.name,
        precision=recipe.precision,
        runtime=recipe.runtime,
        runtime_version=version_of(recipe.runtime),
        model_file=model_file,
        image=checkpoint.image,
        mean=checkpoint.mean,
        std=checkpoint.std,
        classes=len(checkpoint.labels),
        build_key=key,
        quality={},
        files={item.name: sha256_of_file(item) for item in sorted(directory.iterdir())},
    )
    manifest.write(directory)
    if recipe.runtime in RUNTIMES:
        with stage("comparing it with full precision"):
            quality = _quality(directory, checkpoint, calibration()[:: max(1, len(calibration()) // _CHECKED)])
        manifest = dataclasses.replace(manifest, quality=quality)
        manifest.write(directory)
    return manifest


def _quality(directory: Path, checkpoint: Checkpoint, images: Images) -> dict[str, float]:
    """Agreement with torch on pictures of the calibration set: a check that the build went right, no measurement."""
    import torch

    from build_engines.vision.onnx_graph import with_preprocessing

    found = load_classifier(directory).infer(images)
    with torch.no_grad():
        expected = with_preprocessing(checkpoint)(torch.from_numpy(images)).numpy()
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    error = float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
    return {"images": len(images), "agreement": round(agreement, 4), "logit_error": round(error, 5)}


def _words(manifest: VisionManifest) -> str:
    text = f"{manifest.precision} for {manifest.runtime}, {manifest.classes} classes"
    if manifest.quality:
        text += f", agrees with full precision on {manifest.quality['agreement']:.0%} of {manifest.quality['images']}"
    return text
