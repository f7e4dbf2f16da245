"""The manifest that lies next to a drafter's engine: what it was built from and which targets it fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tandem.manifest import Manifest, ManifestError, check_files, check_runtime
from tandem.manifest_file import read_manifest, write_manifest

FORMAT_VERSION = 1
KIND = "recurrent-drafter"
_REBUILD = "Build it again: python -m build_engines drafter."


@dataclass(frozen=True, slots=True)
class DrafterManifest:
    """Description of one drafter directory, stored as `manifest.json`."""

    name: str
    """Readable name of the drafter."""
    weights_sha256: str
    """SHA-256 of the trained weights."""
    embedding_sha256: str
    """Hash of the target's embedding table that went into it."""
    tokenizer_sha256: str
    """SHA-256 of the target's `tokenizer.json`."""
    precision: str
    """Of the weights: fp32 or int8."""
    proposable: int
    """Tokens that it can propose, the most frequent ones."""
    runtime: str
    """Python distribution that runs the engine."""
    runtime_version: str
    """Version of that distribution the engine was built with."""
    hidden_size: int
    """Width of the target's features."""
    vocab_size: int
    """Token ids of the target."""
    files: Mapping[str, str]
    """SHA-256 of every file of the engine, by name relative to the directory."""

    def write(self, directory: Path) -> None:
        """Write `manifest.json`; the last file of a build."""
        write_manifest(directory, KIND, FORMAT_VERSION, asdict(self))

    @classmethod
    def load(cls, directory: Path) -> DrafterManifest:
        """Read the manifest, check the files and the runtime's version.

        Raises:
            ManifestError: something is missing, damaged or made for another version; it names both sides.
        """
        names = {item.name for item in fields(cls)}
        data = read_manifest(directory, "drafter", KIND, FORMAT_VERSION, names, _REBUILD)
        manifest = cls(**data)
        what = f"the drafter in {directory}"
        check_runtime(what, manifest.runtime, manifest.runtime_version, _REBUILD)
        check_files(what, directory, manifest.files, _REBUILD)
        return manifest

    def require_target(self, target: Manifest) -> None:
        """Raise `ManifestError` unless the drafter speaks the target's tokens."""
        if self.tokenizer_sha256 != target.tokenizer_sha256 or self.vocab_size != target.vocab_size:
            raise ManifestError(
                f"the drafter {self.name} does not fit the target {target.name}: tokenizer sha256 "
                f"{self.tokenizer_sha256} and {self.vocab_size} tokens here, {target.tokenizer_sha256} and "
                f"{target.vocab_size} there. {_REBUILD}"
            )
