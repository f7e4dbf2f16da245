"""The file `manifest.json` of engines that are not language models: its kind and version, and exactly known fields."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tandem.manifest import FILE_NAME, ManifestError


def write_manifest(directory: Path, kind: str, version: int, fields: Mapping[str, Any]) -> None:
    """Write the file so that a reader sees the old one or the new one; the last file of a build."""
    text = json.dumps({"format_version": version, "kind": kind, **fields}, indent=2)
    partial = directory / f".{FILE_NAME}.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(directory / FILE_NAME)


def read_manifest(
    directory: Path, what: str, kind: str, version: int, names: Collection[str], rebuild: str
) -> dict[str, Any]:
    """The fields of the file in `directory`.

    Args:
        directory: of the engine.
        what: is expected there, such as `classifier`; for messages.
        kind: as `write_manifest` wrote it.
        version: of the format.
        names: of the fields; all of them, and no others.
        rebuild: what to do about an error.

    Raises:
        ManifestError: there is no file, or it is another one's; it names both sides.
    """
    path = directory / FILE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{directory} holds no {what}: {FILE_NAME} is missing. {rebuild}") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}. {rebuild}") from None
    found = (data.pop("kind", None), data.pop("format_version", None)) if isinstance(data, dict) else (None, None)
    if found != (kind, version):
        raise ManifestError(f"{path}: expected {kind} {version}, found {found[0]} {found[1]}. {rebuild}")
    if data.keys() != set(names) or not isinstance(data["files"], dict):
        raise ManifestError(f"{path}: its fields are not those of a {what}: {', '.join(sorted(data))}. {rebuild}")
    fields: dict[str, Any] = data
    return fields
