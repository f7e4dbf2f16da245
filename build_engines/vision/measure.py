"""All recipes of a model on this machine: accuracy on pictures, speed in interleaved rounds, memory of each alone."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from build_engines.errors import BuildError
from build_engines.progress import counted
from build_engines.vision.checkpoint import Images
from build_engines.vision.recipes import Recipe

BATCHES = (1, 2, 4, 8, 16, 32)
Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one engine on the validation pictures; shares are 0 .. 1."""

    top1: float
    top5: float
    labelled: int
    """Pictures that have a label, on which `top1` and `top5` are counted."""
    agreement: float
    """Of the first choice with that of the reference, on all pictures."""
    logit_error: float
    """Root mean square of the difference from the reference, as a share of the reference's spread."""


@dataclass(slots=True)
class Result:
    """What was measured of one recipe."""

    recipe: Recipe
    directory: Path
    megabytes: float
    memory_mb: float = 0.0
    accuracy: Accuracy | None = None
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """For each batch, of every call."""

    def percentile(self, batch: int, percent: float) -> float:
        """Milliseconds of one call."""
        return float(np.percentile(self.seconds[batch], percent)) * 1000

    def rate(self, batch: int) -> float:
        """Pictures a second, by the median call."""
        return batch / float(np.median(self.seconds[batch]))


def accuracy(found: Logits, reference: Logits, labels: Labels) -> Accuracy:
    """Compare logits float32 [N, classes] with the reference's and with labels int64 [N], negative: not labelled."""
    known = labels >= 0
    first = found.argmax(1)
    five = np.argsort(-found, axis=1)[:, :5]
    right = five[known] == labels[known, None]
    spread = float(reference.std()) or 1.0
    return Accuracy(
        top1=float(right[:, 0].mean()) if known.any() else float("nan"),
        top5=float(right.any(1).mean()) if known.any() else float("nan"),
        labelled=int(known.sum()),
        agreement=float((first == reference.argmax(1)).mean()),
        logit_error=float(np.sqrt(np.mean((found - reference) ** 2))) / spread,
    )


def measure(
    engines: Sequence[tuple[Recipe, Path]], images: Images, labels: Labels, rounds: int, threads: int = 0,
    batches: Sequence[int] = BATCHES,
) -> list[Result]:  # fmt: skip
    """Measure the engines; the first is the reference for agreement and logit error.

    Each runs in a process of its own. In each round every engine gets every batch once, so that a machine that slows
    down slows all of them down.

    Raises:
        BuildError: a process ended early.
    """
    results = [Result(recipe, path, _megabytes(path)) for recipe, path in engines]
    with tempfile.TemporaryDirectory(prefix="tandem-vision-") as temporary:
        pictures = Path(temporary) / "images.npy"
        np.save(pictures, images)
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(_worker(result.directory, pictures, threads)) for result in results]
            logits: list[Logits] = []
            with counted("accuracy", len(results)) as advance:
                for worker, result in zip(workers, results, strict=True):
                    worker("logits", str(Path(temporary) / "logits.npy"))
                    logits.append(np.load(Path(temporary) / "logits.npy"))
                    result.accuracy = accuracy(logits[-1], logits[0], labels)
                    advance(1)
            with counted(f"speed, {rounds} rounds", rounds * len(batches) * len(results)) as advance:
                for _ in range(rounds):
                    for batch in batches:
                        for worker, result in zip(workers, results, strict=True):
                            calls = max(2, 32 // batch) if batch > 1 else 32
                            result.seconds.setdefault(batch, []).extend(worker("time", batch, calls))
                            advance(1)
            for worker, result in zip(workers, results, strict=True):
                result.memory_mb = worker("memory") / 1e6
    return results


def choose(results: Sequence[Result], keep: float, batch: int = 8) -> Result:
    """The fastest at `batch` that keeps the share `keep` of the reference's top-1, which is the first result.

    That is the rule of MLPerf Inference: 99 % of the accuracy in full precision.
    """
    reference = results[0].accuracy
    assert reference is not None
    good = [item for item in results if item.accuracy is not None and item.accuracy.top1 >= keep * reference.top1]
    return max(good, key=lambda item: item.rate(batch))


class _Process:
    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self._process, self._name = process, name

    def __call__(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `read` says why
        return self.read()

    def read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BuildError(f"the measuring process of {self._name} ended with status {self._process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def _worker(directory: Path, pictures: Path, threads: int) -> Iterator[_Process]:
    command = [sys.executable, "-m", "build_engines.vision.worker", str(directory), str(pictures), str(threads)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "TORCH_CPP_LOG_LEVEL": "ERROR"},
    ) as process:
        try:
            worker = _Process(process, directory.name)
            worker.read()
            yield worker
        finally:
            process.kill()


def _megabytes(directory: Path) -> float:
    return sum(item.stat().st_size for item in directory.iterdir()) / 1e6
