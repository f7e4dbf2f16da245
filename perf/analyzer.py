"""The real perf_analyzer: TANDEM_PERF_ANALYZER, one on PATH that runs, or the one inside the wheel tritonclient 2.50.

`pip install perf-analyzer` does not help on glibc below 2.38: it installs a placeholder (0.1.0) without a program.
The last wheel of tritonclient that carries the program wants an older protobuf than the server's environment has, so
it is never installed: the one file is taken out of it. The two libraries that it needs and that few systems have,
libb64 and the CUDA runtime (which it links, and does not use without a GPU), are those of the nvidia-pytriton wheel.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.wheels import Member
from launcher.runtime import CACHE
from perf.errors import PerfError

OVERRIDE = "TANDEM_PERF_ANALYZER"
PROGRAM = Member(
    "tritonclient==2.50.0",
    "tritonclient-2.50.0.data/data/bin/perf_analyzer",
    "ae8cbf583a990235c617a50b380a7cd41e790ba8d414f382a8349e2ffbaae7fa",
    "perf_analyzer-2.50.0",
)
_LIBRARIES = ("libb64.so.0d", "libcudart.so.12")
_VERSION = re.compile(r"Perf Analyzer Version", re.IGNORECASE)


def find(env: Mapping[str, str] | None = None, cache: Path = CACHE) -> tuple[Path, str]:
    """A perf_analyzer that runs on this machine, and in words where it is from.

    Raises:
        PerfError: what TANDEM_PERF_ANALYZER names does not run, or the wheel cannot be had or is not the one we know.
    """
    env = os.environ if env is None else env
    if chosen := env.get(OVERRIDE):
        if reason := why_not(Path(chosen)):
            raise PerfError(f"{OVERRIDE}={chosen} {reason}")
        return Path(chosen).absolute(), f"named by {OVERRIDE}"
    installed = shutil.which("perf_analyzer", path=env.get("PATH"))
    if installed and not why_not(Path(installed)):
        return Path(installed), "on PATH"
    program = _from_wheel(cache / "perf_analyzer")
    if reason := why_not(program):
        raise PerfError(f"{program}, from the wheel {PROGRAM.package}, {reason}")
    return program, f"of the wheel {PROGRAM.package}"


def notes(env: Mapping[str, str] | None = None) -> list[str]:
    """What a user who has installed another perf_analyzer should know about it."""
    env = os.environ if env is None else env
    found = []
    installed = shutil.which("perf_analyzer", path=env.get("PATH"))
    if installed and not env.get(OVERRIDE) and (reason := why_not(Path(installed))):
        found.append(f"perf_analyzer on PATH is not used: {installed} {reason}")
    try:
        version = importlib.metadata.version("perf-analyzer")
    except importlib.metadata.PackageNotFoundError:
        return found
    if version == "0.1.0":
        found.append(
            "the Python package perf-analyzer 0.1.0 is a placeholder without a program: pip takes it where glibc is "
            "older than the real package's 2.38. It is not used, and may be uninstalled."
        )
    return found


def why_not(program: Path) -> str:
    """Why a program is not a perf_analyzer that runs here; empty if it is one."""
    if not (program.is_file() and os.access(program, os.X_OK)):
        return "is not an executable file"
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    if not _VERSION.search(done.stdout + done.stderr):
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}, no output"]
        return f"is not perf_analyzer, or cannot run here; it says: {said[0]}"
    return ""


def _from_wheel(directory: Path) -> Path:
    """The program of the wheel behind a script that lets it find its libraries; made where it is not there yet."""
    try:
        program = PROGRAM.fetch(directory)
    except BuildError as error:
        raise PerfError(f"{error} Or set {OVERRIDE} to a perf_analyzer that you have.") from None
    program.chmod(0o755)
    bundled = _bundled_libraries()
    links = directory / "lib"
    links.mkdir(exist_ok=True)
    for name in _LIBRARIES:
        stem, _, ending = name.partition(".so")
        found = sorted(bundled.glob(f"{stem}-*.so{ending}*")) or sorted(bundled.glob(f"{name}*"))
        if not found:
            raise PerfError(f"{bundled} has no {name}, which perf_analyzer needs: repeat `make setup`")
        _replace_link(links / name, found[0])
    script = directory / "perf_analyzer"
    text = (
        "#!/bin/sh\n"
        f"LD_LIBRARY_PATH={shlex.quote(str(links.resolve()))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n"
        "export LD_LIBRARY_PATH\n"
        f'exec {shlex.quote(str(program.resolve()))} "$@"\n'
    )
    if not (script.is_file() and script.read_text(encoding="utf-8") == text):
        scratch = script.with_name(f".{script.name}.{os.getpid()}")
        scratch.write_text(text, encoding="utf-8")
        scratch.chmod(0o755)
        scratch.replace(script)
    return script.absolute()


def _bundled_libraries() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise PerfError("nvidia-pytriton, whose libraries perf_analyzer needs, is not installed: run `make setup`")
    return Path(next(iter(spec.submodule_search_locations))).parent / "nvidia_pytriton.libs"


def _replace_link(link: Path, target: Path) -> None:
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    scratch = link.with_name(f".{link.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.replace(link)
