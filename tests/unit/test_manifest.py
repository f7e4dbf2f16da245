"""Manifests: what is written is read, and an engine that does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tandem.manifest import FILE_NAME, Manifest, ManifestError

GRAPH = b"graph"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "graph.bin").write_bytes(GRAPH)
    manifest().write(tmp_path)
    return tmp_path


def manifest(**changes: Any) -> Manifest:
    usual = Manifest(
        kind="language", name="tiny", architecture="llama", source="tiny", source_sha256="00", tokenizer_sha256="11",
        weights="int8", activations="f32", kv_cache="u8", dynamic_quantization_group=64,
        runtime="openvino", runtime_version=metadata.version("openvino"), vocab_size=512, context_length=128,
        bos_token_id=None, eos_token_ids=(2, 7), add_bos=False, build_key="22",
        files={"graph.bin": hashlib.sha256(GRAPH).hexdigest()}, quality={"perplexity": 16.5},
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


def edit(engine: Path, **changes: Any) -> None:
    data = json.loads((engine / FILE_NAME).read_text())
    (engine / FILE_NAME).write_text(json.dumps(data | changes))


def test_what_was_written_is_read(engine: Path) -> None:
    assert Manifest.load(engine) == manifest()


def test_directory_without_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json is missing.*python -m build_engines"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a JSON object, found list"),
        ('{"format_version": 9}', "expected format version 1, found 9"),
        ('{"format_version": 1, "colour": 3}', r"missing fields \['activations'.*unknown fields \['colour'\]"),
    ],
)
def test_manifest_that_cannot_be_understood(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ManifestError, match=message):
        Manifest.load(tmp_path)


def test_fields_of_the_wrong_kind(engine: Path) -> None:
    edit(engine, eos_token_ids=2)
    with pytest.raises(ManifestError, match="`eos_token_ids` a list"):
        Manifest.load(engine)


def test_missing_file_is_named(engine: Path) -> None:
    (engine / "graph.bin").unlink()
    with pytest.raises(ManifestError, match=r"incomplete: graph\.bin is missing"):
        Manifest.load(engine, verify=False)


def test_damaged_file_is_named_with_both_hashes(engine: Path) -> None:
    (engine / "graph.bin").write_bytes(b"grapb")
    expected, found = hashlib.sha256(GRAPH).hexdigest(), hashlib.sha256(b"grapb").hexdigest()
    with pytest.raises(ManifestError, match=rf"graph\.bin: expected sha256 {expected}, found {found}"):
        Manifest.load(engine)
    assert Manifest.load(engine, verify=False) == manifest()  # so it is the hash that found it


def test_runtime_version_names_both_sides(engine: Path) -> None:
    edit(engine, runtime_version="1.2.3")
    installed = metadata.version("openvino")
    with pytest.raises(ManifestError, match=rf"expected version 1\.2\.3, found {installed}.*python -m build_engines"):
        Manifest.load(engine)


def test_runtime_that_is_not_installed(engine: Path) -> None:
    edit(engine, runtime="no-such-runtime")
    with pytest.raises(ManifestError, match=r"no-such-runtime: expected version .* found none installed"):
        Manifest.load(engine)


def test_interrupted_write_keeps_the_old_manifest(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        manifest(name="other").write(engine)
    assert Manifest.load(engine).name == "tiny"
    assert sorted(item.name for item in engine.iterdir()) == ["graph.bin", FILE_NAME]
