"""The shell parts of the images, run outside of Docker: model repository, builds, messages."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from container import ROOT, Container


def write_model(repository: Path, name: str, text: str = "") -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(text)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"')
    return version


@pytest.fixture
def container(tmp_path) -> Container:
    made = Container(tmp_path)
    write_model(made.home / "model_repository", "one", "first version")
    (made.home / "model_repository" / "one" / "configs").mkdir()
    (made.home / "model_repository" / "one" / "configs" / "cpu.pbtxt").touch()
    # As a developer's checkout has them: they are for this machine alone, and .dockerignore keeps them out too.
    (made.home / "model_repository" / "one" / "1" / "engine").mkdir()
    (made.home / "model_repository" / "one" / "1" / "engine" / "manifest.json").write_text("the developer's")
    return made


def test_models_are_taken_over(container):
    container.update()
    assert set(container.files()) == {"one/config.pbtxt", "one/configs/cpu.pbtxt", "one/1/model.py"}


def test_a_new_version_replaces_models_and_keeps_engines(container):
    container.update()
    engine = container.models / "one" / "1" / "engine"
    engine.mkdir()
    (engine / "manifest.json").write_text("built here")
    write_model(container.models, "of_the_old_version")
    (container.models / "one" / "old.txt").touch()
    (container.models / "one" / "1" / "old.py").touch()
    write_model(container.home / "model_repository", "one", "second version")
    write_model(container.home / "model_repository", "two")
    container.update()
    files = container.files()
    assert set(files) == {
        "one/1/engine/manifest.json",
        "one/1/model.py",
        "one/config.pbtxt",
        "one/configs/cpu.pbtxt",
        "two/1/model.py",
        "two/config.pbtxt",
    }
    assert files["one/1/engine/manifest.json"][1] == b"built here"
    assert files["one/1/model.py"][1] == b"second version"


def test_what_is_current_is_not_touched(container):
    container.update()
    before = container.files()
    container.update()
    assert container.files() == before


def test_default_build_is_that_of_make(container):
    """All of it, on engines that are there: it finds them up to date."""
    version = container.home / "model_repository" / "target" / "1"
    write_model(container.home / "model_repository", "target")
    assert version.is_dir()
    container.update()
    (container.data / ".cache").rmdir()
    (container.data / ".cache").symlink_to(ROOT / ".cache")
    for name in ("engine", "drafter"):
        (container.models / "target" / "1" / name).symlink_to(ROOT / "model_repository" / "target" / "1" / name)
    before = container.files()
    done = container.run("build")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("up to date") == 2, done.stderr
    assert container.files() == before


@pytest.mark.parametrize("arguments", [(), ("run",), ("/bin/bash",)])
def test_only_two_commands(container, arguments):
    done = container.run(*arguments)
    assert done.returncode == 1
    assert "say `build` or `serve`" in done.stderr


def test_build_without_a_volume(container):
    (container.data / ".cache").rmdir()
    done = container.run("build")
    assert done.returncode == 1
    assert ".cache is not a directory that user" in done.stderr
    assert "mount a volume" in done.stderr


def test_serve_without_a_place_for_its_log(container):
    done = container.run("serve", TANDEM_STATE="/proc/nowhere")
    assert done.returncode == 1
    assert "/proc/nowhere is not a directory that user" in done.stderr


def test_serve_before_build(container):
    done = container.run("serve")
    assert done.returncode == 1
    assert "run the build service first" in done.stderr


def test_serve_with_models_of_another_version(container):
    container.update()
    (container.models / "one" / "config.pbtxt").write_text("changed")
    done = container.run("serve")
    assert done.returncode == 1
    assert "not of this version" in done.stderr


def test_health_check_without_a_server(container):
    command = [str(ROOT / "docker" / "ready.sh")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**container.env, "TANDEM_HTTP_PORT": "1"}, check=False
    )
    assert done.returncode == 1
    assert "127.0.0.1:1/v2/health/ready" in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- TensorRT's Python bindings


def bindings(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "docker" / "tensorrt_python.sh"), "--print"]
    env = {"PATH": os.environ["PATH"], "TENSORRT_LIBRARIES": f"/nonexistent {directory}"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_bindings_are_of_the_version_of_the_libraries(tmp_path):
    for name in ("libnvinfer.so", "libnvinfer.so.11", "libnvinfer.so.11.1.0", "libnvinfer_plugin.so.11.2.0"):
        (tmp_path / name).touch()
    assert bindings(tmp_path).stdout == "tensorrt-cu13-bindings==11.1.0.* cuda-bindings==13.*\n"


@pytest.mark.parametrize(
    ("library", "message"),
    [("libnvinfer.so.11", "no libnvinfer.so.X.Y.Z"), ("libnvinfer.so.10.9.0", "written for TensorRT 11")],
)
def test_libraries_that_will_not_do(tmp_path, library, message):
    (tmp_path / library).touch()
    done = bindings(tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
