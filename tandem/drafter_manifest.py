"""The manifest that lies next to a drafter's engine: what it was built from and which targets it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tandem.manifest import FILE_NAME, Manifest, ManifestError, check_files, check_runtime

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
        text = json.dumps({"format_version": FORMAT_VERSION, "kind": KIND, **asdict(self)}, indent=2)
        partial = directory / f".{FILE_NAME}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(directory / FILE_NAME)

    @classmethod
    def load(cls, directory: Path) -> DrafterManifest:
        """Read the manifest, check the files and the runtime's version.

        Raises:
            ManifestError: something is missing, damaged or made for another version; it names both sides.
        """
        path = directory / FILE_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(f"{directory} holds no drafter: {FILE_NAME} is missing. {_REBUILD}") from None
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read: {error}. {_REBUILD}") from None
        found = (data.pop("kind", None), data.pop("format_version", None)) if isinstance(data, dict) else (None, None)
        if found != (KIND, FORMAT_VERSION):
            raise ManifestError(f"{path}: expected {KIND} {FORMAT_VERSION}, found {found[0]} {found[1]}. {_REBUILD}")
        if data.keys() != {item.name for item in fields(cls)} or not isinstance(data["files"], dict):
            raise ManifestError(f"{path}: its fields are not those of a drafter: {', '.join(sorted(data))}. {_REBUILD}")
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
