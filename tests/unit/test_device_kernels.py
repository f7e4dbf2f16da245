"""The kernels beside a plan: compiled for GPUs that are not here, with the arguments that we launch them with."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import device_kernels
import pytest
from rich.console import Console

from build_engines import device_kernels as building

PROGRAM = """
import json, sys
from pathlib import Path
from build_engines.device_kernels import compiled, kernels, launch_facts, write_kernels
from build_engines.errors import BuildError

directory = Path(sys.argv[1])
assert write_kernels(directory, "8.9")
facts = json.loads((directory / "kernels.json").read_text())
for name, kernel in facts.items():
    assert (directory / kernel["file"]).read_bytes()[:4] == b"\\x7fELF"
    print(name, len(kernel["arguments"]), kernel["threads"], kernel["entry"])
one = kernels()["penalize"]
made = compiled(one, 89)
for types in ("*fp32 *i32 *i32 *i32 *fp32 i32 *i32", "*fp32 *i32 *i32 *i32 *fp32 i32 i32 i32"):
    try:
        launch_facts("penalize", one._replace(types=types), made)
    except BuildError as error:
        print(str(error).split(", and not")[0])
"""


def test_they_compile_and_other_arguments_are_refused(tmp_path: Path) -> None:
    if not (device_kernels.PACKAGES / "triton").is_dir():
        pytest.skip("the Triton language is missing: scripts/kernel_packages.sh fetches it")
    env = {name: value for name, value in os.environ.items() if name != device_kernels.INTERPRET}
    env["PYTHONPATH"] = f"{device_kernels.ROOT}:{device_kernels.PACKAGES}"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, choose, penalize, wrong, more = done.stdout.splitlines()
    assert choose == "choose 10 128 choose_kernel"
    assert penalize == "penalize 7 128 penalize_kernel"
    assert wrong.startswith("the kernel penalize takes u64, u64, u64, u64, u64, u32, u32, u64")
    assert more == wrong


def test_without_their_compiler_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(building, "console", Console(file=said, width=200))
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("tandem.device")]:
        monkeypatch.delitem(sys.modules, name)
    assert not building.write_kernels(tmp_path, "8.9")
    assert list(tmp_path.iterdir()) == []
    assert "pip install .[kernels]" in said.getvalue()
