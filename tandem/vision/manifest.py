"""The manifest that lies next to a classifier's engine: what it was built from, what it takes and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tandem.manifest import FILE_NAME, ManifestError, check_files, check_runtime
from tandem.manifest_file import read_manifest, write_manifest
from tandem.vision.preprocess import ImageRule

FORMAT_VERSION = 1
KIND = "vision"
LABELS_FILE = "labels.txt"
INPUT = "image"
"""UINT8 [N, size, size, 3], RGB; scaling and layout are part of the graph."""
OUTPUT = "logits"
"""FP32 [N, classes], before any softmax."""
_REBUILD = "Build it again: python -m build_engines vision MODEL."


@dataclass(frozen=True, slots=True)
class VisionManifest:
    """Description of one classifier's directory, stored as `manifest.json`."""

    name: str
    """Name of the model, for example `resnet50`."""
    architecture: str
    """Model type as Hugging Face names it, for example `resnet`."""
    source: str
    """Name of the checkpoint: package, directory or hub id, without any path of this machine."""
    source_sha256: str
    """Hash over the content of the checkpoint."""
    recipe: str
    """Entry of `build_engines.vision.recipes` that made the engine."""
    precision: str
    """fp32, bf16, fp16 or int8."""
    runtime: str
    """Python distribution that runs the engine, for example `openvino`."""
    runtime_version: str
    """Version of that distribution the engine was built with."""
    model_file: str
    """The file that the runtime loads."""
    image: ImageRule
    """How a picture becomes the input."""
    mean: tuple[float, float, float]
    """Per channel, subtracted from the pixels 0 .. 255 inside the graph."""
    std: tuple[float, float, float]
    """Per channel, what the difference is divided by inside the graph."""
    classes: int
    """Width of the logits; as many lines has `labels.txt`."""
    build_key: str
    """Hash over source, recipe and tool versions: equal keys mean an equal engine."""
    quality: Mapping[str, Any]
    """Measured when it was built: for example `{"images": 200, "agreement": 0.995, "max_logit_error": 0.2}`."""
    files: Mapping[str, str]
    """SHA-256 of every file of the engine, by name relative to the directory."""

    def write(self, directory: Path) -> None:
        """Write `manifest.json`; the last file of a build."""
        write_manifest(directory, KIND, FORMAT_VERSION, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> VisionManifest:
        """Read the manifest without looking at the files it names.

        Raises:
            ManifestError: there is none, or it is none of a classifier.
        """
        names = {item.name for item in fields(cls)}
        data = read_manifest(directory, "classifier", KIND, FORMAT_VERSION, names, _REBUILD)
        try:
            rule = data.pop("image")
            image = ImageRule(**{**rule, "background": tuple(rule["background"])})
            return cls(image=image, mean=tuple(data.pop("mean")), std=tuple(data.pop("std")), **data)
        except (TypeError, ValueError, KeyError) as error:
            raise ManifestError(f"{directory / FILE_NAME}: {error}. {_REBUILD}") from None

    @classmethod
    def load(cls, directory: Path) -> VisionManifest:
        """Read the manifest, check the files and the runtime's version.

        Raises:
            ManifestError: something is missing, damaged or made for another version; it names both sides.
        """
        manifest = cls.read(directory)
        what = f"the classifier in {directory}"
        check_runtime(what, manifest.runtime, manifest.runtime_version, _REBUILD)
        check_files(what, directory, manifest.files, _REBUILD)
        return manifest

    def labels(self, directory: Path) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits.

        Raises:
            ManifestError: there are not as many as classes.
        """
        lines = tuple((directory / LABELS_FILE).read_text(encoding="utf-8").splitlines())
        if len(lines) != self.classes:
            raise ManifestError(f"{directory}: {LABELS_FILE} has {len(lines)} lines for {self.classes} classes")
        return lines
