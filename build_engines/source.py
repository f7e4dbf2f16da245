"""Where a model comes from: a Hugging Face directory, a hub id or a GGUF file, and the hash of its content."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from build_engines.errors import BuildError
from tandem.manifest import sha256_of_file

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEXT_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_CHECKPOINT_FILES = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json", "config.json",
    "preprocessor_config.json", *TEXT_FILES,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on this machine."""

    path: Path
    """GGUF file, or directory in the layout of Hugging Face."""
    name: str
    """Name to show: file name, directory name or hub id."""
    sha256: str
    """Hash over names and content of everything that goes into an engine."""

    @property
    def is_gguf(self) -> bool:
        return self.path.is_file()


def resolve(text: str) -> Source:
    """Find the checkpoint that `text` means, downloading it from the hub if it is an id of there.

    Raises `BuildError` if there is no such thing, or if it is no checkpoint.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return _gguf(path)
    if path.is_dir():
        return _directory(path, path.resolve().name)
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(text):
        raise BuildError(f"no such file or directory: {text} (a hub id looks like owner/name)")
    return _directory(_from_hub(text), text)


def _gguf(path: Path) -> Source:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise BuildError(f"{path} is no GGUF file: it starts with {magic!r}. Give a GGUF file or a model directory.")
    return Source(path, path.name, sha256_of_file(path))


def _directory(path: Path, name: str) -> Source:
    if not (path / "config.json").is_file():
        found = sorted(item.name for item in path.glob("*.gguf"))
        hint = f" It holds {found[0]}: give that file." if found else " Is it a Hugging Face model directory?"
        raise BuildError(f"{path} holds no config.json.{hint}")
    files = sorted({item for pattern in _CHECKPOINT_FILES for item in path.glob(pattern) if item.is_file()})
    if not any(item.suffix in (".safetensors", ".bin") for item in files):
        raise BuildError(f"{path} holds a config.json but no weights (*.safetensors or pytorch_model*.bin)")
    digest = hashlib.sha256()
    for item in files:
        digest.update(f"{item.name}\0{sha256_of_file(item)}\n".encode())
    return Source(path, name, digest.hexdigest())


def _from_hub(repository: str) -> Path:
    """Download, or find in the local hub cache, the files of a hub repository that a build reads."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(_CHECKPOINT_FILES)))
    except Exception as error:  # the client raises errors of four libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BuildError(
            f"{repository}: no such directory here, and the Hugging Face hub did not deliver it: {reason}. Check the "
            "spelling and the connection, set HF_TOKEN for a gated model, or give a local directory or GGUF file."
        ) from error
