"""The manifest that lies next to every engine: what it was built from, how, and what it needs to run.

An engine directory is only usable as a whole, so the manifest names every file with its SHA-256. `Manifest.load`
checks them, and the runtime's version, and says what to run when something does not fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from tandem import tensorrt_library

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1
_CHUNK = 1 << 20


class ManifestError(ValueError):
    """An engine directory that must not be loaded: incomplete, damaged, or built for another runtime."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of one engine directory, stored as `manifest.json`."""

    kind: str
    """What the engine computes: `language`."""
    name: str
    """Readable name of the model."""
    architecture: str
    """Model type as Hugging Face names it, for example `llama`."""
    source: str
    """Name of the checkpoint: file, directory or hub id, without any path of this machine."""
    source_sha256: str
    """Hash over the content of the checkpoint."""
    tokenizer_sha256: str
    """SHA-256 of `tokenizer.json`; a draft and its target must agree in it."""
    weights: str
    """Weight precision: fp32, fp16, bf16, int8 or int4, with the group size where there is one (`int4-sym-g64`)."""
    activations: str
    """Precision of the arithmetic the engine is loaded with: f32, f16 or bf16."""
    kv_cache: str
    """Precision of the KV cache the engine is loaded with: f32, f16, bf16 or u8."""
    dynamic_quantization_group: int
    """Values that share one scale when activations are quantized on the fly; 0 turns that off."""
    runtime: str
    """Python distribution that runs the engine, for example `openvino`."""
    runtime_version: str
    """Version of that distribution the engine was built with."""
    vocab_size: int
    """Width of the logits."""
    context_length: int
    """Longest sequence the model was made for, in tokens."""
    bos_token_id: int | None
    """Token that starts a text, if the model has one."""
    eos_token_ids: tuple[int, ...]
    """All tokens that end a text or a turn."""
    add_bos: bool
    """True if the tokenizer puts the BOS token before a raw text."""
    build_key: str
    """Hash over source, recipe and tool versions: equal keys mean an equal engine."""
    files: Mapping[str, str]
    """SHA-256 of every file of the engine, by name relative to the directory."""
    quality: Mapping[str, Any] | None = field(default=None)
    """Measured quality, if it was measured: for example `{"perplexity": 16.5, "tokens": 16384}`."""

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Manifest:
        """Read the manifest of an engine directory without checking the files it names.

        Raises `ManifestError` if there is none, or if it cannot be understood.
        """
        path = Path(directory) / FILE_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ManifestError(f"{directory} holds no engine: {FILE_NAME} is missing. {_REBUILD}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ManifestError(f"{path} cannot be read: {error}. {_REBUILD}") from None
        if not isinstance(data, dict):
            raise ManifestError(f"{path}: expected a JSON object, found {type(data).__name__}. {_REBUILD}")
        version = data.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ManifestError(f"{path}: expected format version {FORMAT_VERSION}, found {version}. {_REBUILD}")
        known = {item.name for item in fields(cls)}
        missing, unknown = sorted(known - data.keys()), sorted(data.keys() - known)
        if missing or unknown:
            raise ManifestError(f"{path}: missing fields {missing}, unknown fields {unknown}. {_REBUILD}")
        if not isinstance(data["files"], dict) or not isinstance(data["eos_token_ids"], list):
            raise ManifestError(f"{path}: `files` must be an object and `eos_token_ids` a list. {_REBUILD}")
        data["eos_token_ids"] = tuple(data["eos_token_ids"])
        return cls(**data)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], verify: bool = True) -> Manifest:
        """Read the manifest and check what it promises.

        `verify=True` hashes every file (about a second per GB); with `verify=False` only their presence and the
        runtime's version are checked. Raises `ManifestError` naming both sides of any mismatch.
        """
        manifest = cls.read(directory)
        check_runtime(f"the engine in {directory}", manifest.runtime, manifest.runtime_version, _REBUILD)
        manifest.check_files(directory, verify=verify)
        return manifest

    def check_files(self, directory: str | os.PathLike[str], verify: bool = True) -> None:
        """Raise `ManifestError` if a file is missing or, with `verify`, does not have the hash noted here."""
        check_files(f"the engine in {directory}", Path(directory), self.files, _REBUILD, verify)

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write `manifest.json` so that a reader sees the old file or the new one, never a part of it."""
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{FILE_NAME}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp leaves the file readable by its owner only
            os.replace(temporary, Path(directory) / FILE_NAME)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


_REBUILD = "Build it again: python -m build_engines default (or: language SOURCE --output DIR --force)."


def check_runtime(what: str, runtime: str, version: str, rebuild: str) -> None:
    """Raise `ManifestError` if the distribution `runtime` is not installed in the version `what` was built for."""
    found = runtime_version(runtime) or "none installed"
    if found != version:
        raise ManifestError(f"{what} was built for {runtime}: expected version {version}, found {found}. {rebuild}")


def runtime_version(runtime: str) -> str | None:
    """Version of the distribution `runtime`, None if it is not installed."""
    if runtime == "tensorrt":  # comes in several
        return tensorrt_library.version()
    try:
        return metadata.version(runtime)
    except metadata.PackageNotFoundError:
        return None


def check_files(what: str, directory: Path, files: Mapping[str, str], rebuild: str, verify: bool = True) -> None:
    """Raise `ManifestError` if one of `files` is missing or, with `verify`, does not have the SHA-256 noted for it."""
    for name, expected in sorted(files.items()):
        path = directory / name
        if not path.is_file():
            raise ManifestError(f"{what} is incomplete: {name} is missing. {rebuild}")
        if verify and (found := sha256_of_file(path)) != expected:
            raise ManifestError(f"{what} is damaged: {name}: expected sha256 {expected}, found {found}. {rebuild}")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
