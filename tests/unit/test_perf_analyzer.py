"""Finding a perf_analyzer that runs: the override, what is on PATH, the wheel; placeholders are told apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import zipfile
from pathlib import Path

import pytest

from build_engines import wheels
from build_engines.wheels import Member
from perf import analyzer
from perf.errors import PerfError

REAL = "#!/bin/sh\necho 'Perf Analyzer Version 2.60 (commit 1)'\n"
PLACEHOLDER = "#!/bin/sh\necho 'this platform has no wheel' >&2\nexit 1\n"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache in which the wheel's program lies already; here it is a script that shows its library path."""
    text = REAL + 'echo "libraries $LD_LIBRARY_PATH"\n'
    known = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(analyzer, "PROGRAM", Member("tritonclient==0", "bin/x", known, "perf_analyzer-0"))
    program(tmp_path / "cache" / "perf_analyzer" / "perf_analyzer-0", text)
    return tmp_path / "cache"


def test_override_is_used(tmp_path: Path, wheel: Path) -> None:
    named = program(tmp_path / "mine", REAL)
    assert analyzer.find({analyzer.OVERRIDE: str(named), "PATH": ""}, wheel)[0] == named


@pytest.mark.parametrize(
    ("text", "reason"), [(PLACEHOLDER, "this platform has no wheel"), ("#!/bin/sh\n", "exit code 0, no output")]
)
def test_override_that_is_no_perf_analyzer(tmp_path: Path, wheel: Path, text: str, reason: str) -> None:
    named = program(tmp_path / "mine", text)
    with pytest.raises(PerfError, match=rf"TANDEM_PERF_ANALYZER=.*mine is not perf_analyzer.*{reason}"):
        analyzer.find({analyzer.OVERRIDE: str(named)}, wheel)


def test_override_that_does_not_exist(tmp_path: Path, wheel: Path) -> None:
    with pytest.raises(PerfError, match="is not an executable file"):
        analyzer.find({analyzer.OVERRIDE: str(tmp_path / "nothing")}, wheel)


def test_one_on_path_is_used(tmp_path: Path, wheel: Path) -> None:
    installed = program(tmp_path / "bin" / "perf_analyzer", REAL)
    env = {"PATH": str(installed.parent)}
    assert analyzer.find(env, wheel) == (installed, "on PATH")
    assert analyzer.notes(env) == []


def test_placeholder_on_path_is_explained_and_not_used(tmp_path: Path, wheel: Path) -> None:
    placeholder = program(tmp_path / "bin" / "perf_analyzer", PLACEHOLDER)
    env = {"PATH": str(placeholder.parent)}
    found, origin = analyzer.find(env, wheel)
    assert found.parent == wheel / "perf_analyzer"
    assert origin == "of the wheel tritonclient==0"
    assert "this platform has no wheel" in analyzer.notes(env)[0]


def test_placeholder_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    assert "placeholder without a program" in analyzer.notes({"PATH": ""})[0]
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.60.0")
    assert analyzer.notes({"PATH": ""}) == []


def test_program_of_the_wheel_finds_its_libraries(wheel: Path) -> None:
    found, _ = analyzer.find({"PATH": ""}, wheel)
    said = subprocess.run([found], capture_output=True, text=True, check=True).stdout
    libraries = Path(said.split("libraries ")[1].split(":")[0].strip())
    assert sorted(path.name for path in libraries.iterdir()) == ["libb64.so.0d", "libcudart.so.12"]
    assert all(path.resolve().is_file() for path in libraries.iterdir())


def test_other_program_than_the_one_we_know_is_fetched_again(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    program(wheel / "perf_analyzer" / "perf_analyzer-0", REAL + "# changed\n")

    def other_wheel(package: str, directory: Path, hint: str = "") -> Path:
        with zipfile.ZipFile(directory / "other.whl", "w") as archive:
            archive.writestr(analyzer.PROGRAM.path, b"changed too")
        return directory / "other.whl"

    monkeypatch.setattr(wheels, "download", other_wheel)
    with pytest.raises(PerfError, match=r"expected sha256 .* found .*TANDEM_PERF_ANALYZER"):
        analyzer.find({"PATH": ""}, wheel)
