"""Finds the real `tritonserver`; assembles a backend directory for the one in the nvidia-pytriton wheel."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CACHE = PROJECT / ".cache"

# Shared library -> Debian package, for what tritonserver and its Python stub take from the system.
_DEBIAN_PACKAGES = {
    "libexpat.so.1": "libexpat1",
    "libgcc_s.so.1": "libgcc-s1",
    "libstdc++.so.6": "libstdc++6",
    "libz.so.1": "zlib1g",
    "libb64.so.0d": "libb64-0d",
    "libre2.so.9": "libre2-9",
    "libarchive.so.13": "libarchive13",
    "libnuma.so.1": "libnuma1",
}

# They come with the GPU's driver, not from a package: an image is built without, and the container runtime adds them.
_OF_THE_DRIVER = ("libcuda.so", "libnvidia-ml.so")


class RuntimeMissingError(RuntimeError):
    """No usable tritonserver; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A tritonserver and what it needs around it."""

    binary: Path
    backends: Path  # for --backend-directory
    library_path: tuple[Path, ...] = ()  # goes to the front of LD_LIBRARY_PATH
    origin: str = ""  # in words, for logs
    caches: Path | None = None  # for --cache-directory; None: this server brings no response cache

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` plus what the server and its Python stubs need.

        The stub embeds Python and finds its packages through the first `python3` on PATH, hence the running
        environment's `bin` comes first. Huge pages make decoding on CPU engines 16-25 % faster.
        """
        env = dict(base)
        env["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), env.get("PATH", os.defpath)])
        libraries = [str(p) for p in self.library_path]
        if env.get("LD_LIBRARY_PATH"):
            libraries.append(env["LD_LIBRARY_PATH"])
        if libraries:
            env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        tunables = env.get("GLIBC_TUNABLES", "")
        if "glibc.malloc.hugetlb" not in tunables:
            env["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
        env.pop("PYTHONHOME", None)  # would override the environment that PATH selects
        return env

    def missing_libraries(self) -> list[str]:
        """Names of shared libraries that the server, the Python backend or its stub need and do not find.

        Those of a GPU's driver do not count.
        """
        env = self.environment(os.environ)
        missing: set[str] = set()
        python = self.backends / "python"
        for file in (self.binary, python / "libtriton_python.so", python / "triton_python_backend_stub"):
            if not file.exists():
                continue
            result = subprocess.run(["ldd", str(file.resolve())], capture_output=True, text=True, env=env, check=False)
            missing.update(re.findall(r"^\s*(\S+) => not found", result.stdout, re.MULTILINE))
        return sorted(name for name in missing if not name.startswith(_OF_THE_DRIVER))


def debian_packages(libraries: list[str]) -> list[str]:
    """Debian packages that carry these shared libraries; a library nobody knows keeps its own name."""
    packages = []
    for library in libraries:
        python = re.fullmatch(r"(libpython3\.\d+)\.so.*", library)
        packages.append(python.group(1) if python else _DEBIAN_PACKAGES.get(library, library))
    return sorted(set(packages))


def find_runtime(env: Mapping[str, str] | None = None, cache: Path = CACHE) -> Runtime:
    """The server to run: TANDEM_TRITONSERVER, `tritonserver` on PATH, or that of the nvidia-pytriton wheel.

    Raises:
        RuntimeMissingError: none of the three is there, or the wheel has no stub for the running Python.
    """
    env = os.environ if env is None else env
    chosen = env.get("TANDEM_TRITONSERVER")
    if chosen and not os.access(chosen, os.X_OK):
        raise RuntimeMissingError(f"TANDEM_TRITONSERVER={chosen} is not an executable file")
    installed = chosen or shutil.which("tritonserver", path=env.get("PATH"))
    if installed:
        binary = Path(installed).resolve()
        backends = binary.parent.parent / "backends"  # /opt/tritonserver/{bin,backends} in the container
        caches = _caches(binary.parent.parent)
        return Runtime(binary, backends, origin=f"installed server {binary}", caches=caches)
    return _wheel_runtime(cache)


def _wheel_runtime(cache: Path) -> Runtime:
    # find_spec, not import: pytriton's own packages are not installed.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeMissingError("no tritonserver on PATH and nvidia-pytriton is not installed: run `make setup`")
    package = Path(next(iter(spec.submodule_search_locations)))
    version = importlib.metadata.version("nvidia-pytriton")
    server = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise RuntimeMissingError(f"nvidia-pytriton {version} has no Python backend stub for Python {python}")
    return Runtime(
        binary=server / "bin" / "tritonserver",
        backends=_assemble_backends(server / "backends" / "python", stub, cache, f"{version}-py{python}"),
        library_path=(package.parent / "nvidia_pytriton.libs", *_libpython_directory()),
        origin=f"tritonserver of nvidia-pytriton {version}",
        caches=_caches(server),
    )


def _caches(server: Path) -> Path | None:
    """The directory of response caches in a server's installation, if it has the local one."""
    caches = server / "caches"
    return caches if (caches / "local").is_dir() else None


def _libpython_directory() -> tuple[Path, ...]:
    """Where the running Python keeps its shared library, if that is outside the system's search path."""
    directory = sysconfig.get_config_var("LIBDIR")
    library = sysconfig.get_config_var("INSTSONAME")
    if directory and library and ".so" in library and (Path(directory) / library).exists():
        return (Path(directory),)
    return ()


def _assemble_backends(backend: Path, stub: Path, cache: Path, label: str) -> Path:
    """A directory `<backends>/python` with links to library, utilities and stub; made once, then reused."""
    sources = [backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub]
    key = hashlib.sha256("\n".join(map(str, sources)).encode()).hexdigest()[:12]
    final = cache / "triton" / "backends" / f"{label}-{key}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
    scratch.chmod(0o755)  # for servers of other users too
    (scratch / "python").mkdir()
    for source in sources:
        (scratch / "python" / source.name).symlink_to(source)
    try:
        scratch.rename(final)  # atomic: another process sees the whole directory or none
    except OSError:
        shutil.rmtree(scratch)
        if not final.is_dir():
            raise
    return final


def has_gpu() -> bool:
    """Whether `nvidia-smi` lists at least one GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout
