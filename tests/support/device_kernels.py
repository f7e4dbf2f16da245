"""The kernels of tandem/device in tests, interpreted or on a GPU; skips where the Triton language is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / ".cache" / "openai-triton"
INTERPRET = "TRITON_INTERPRET"


def require(*, interpreted: bool) -> None:
    """Make `import triton` work, or skip the module. The choice between interpreter and GPU holds for the process.

    Args:
        interpreted: on CPU in the interpreter, else compiled for the GPU.
    """
    if importlib.util.find_spec("triton") is None:
        if not (PACKAGES / "triton").is_dir():
            pytest.skip(
                "the Triton language is missing: scripts/kernel_packages.sh fetches it", allow_module_level=True
            )
        sys.path.append(str(PACKAGES))
    loaded = "tandem.device.noise" in sys.modules
    if loaded and (os.environ.get(INTERPRET) == "1") != interpreted:
        pytest.skip(
            "the kernels are loaded the other way in this process: run these tests alone", allow_module_level=True
        )
    if interpreted:
        os.environ[INTERPRET] = "1"
    else:
        os.environ.pop(INTERPRET, None)


def mutant(directory: Path, name: str, file: str, old: str, new: str) -> ModuleType:
    """`tandem.device.sampler` from a copy of the kernels in which `old` was replaced by `new`, once, in `file`."""
    package = directory / name
    package.mkdir()
    for source in (ROOT / "tandem" / "device").glob("*.py"):
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
            text = text.replace(old, new)
        (package / source.name).write_text(text.replace("tandem.device", name))
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module(f"{name}.sampler")
    finally:
        sys.path.remove(str(directory))
