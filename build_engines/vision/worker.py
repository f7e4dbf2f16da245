"""One engine in a process of its own, so that its memory can be told: answers commands on standard input.

`python -m build_engines.vision.worker ENGINE IMAGES.npy THREADS`. A line in is a JSON list, a line out its JSON answer:
`["time", batch, calls]` to seconds of each call; `["logits", path]` writes them; `["memory"]` to peak bytes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tandem.vision.classifier import Classifier, Pixels, load_classifier

_BATCH = 8


def main() -> None:
    """Serve until the input ends."""
    directory, pictures, threads = sys.argv[1:]
    images: Pixels = np.load(pictures, mmap_mode="r")
    classifier = load_classifier(directory, int(threads) or None)
    answer(["ready"])
    for line in sys.stdin:
        answer(_run(json.loads(line), classifier, images))


def _run(command: list[Any], classifier: Classifier, images: Pixels) -> Any:
    match command:
        case ["time", int(batch), int(calls)]:
            return timed(classifier, np.array(images[:batch]), calls)
        case ["logits", str(path)]:
            parts = [classifier.infer(np.array(images[at : at + _BATCH])) for at in range(0, len(images), _BATCH)]
            np.save(Path(path), np.concatenate(parts))
            return len(images)
        case ["memory"]:
            return peak_memory()
    raise ValueError(f"{command} is no command")


def timed(classifier: Classifier, batch: Pixels, calls: int) -> list[float]:
    """Seconds of each of `calls` inferences of `batch`, after one that does not count."""
    classifier.infer(batch)
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        classifier.infer(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_memory() -> int:
    """The most bytes that were resident at a time. Of `getrusage` a child inherits its parent's peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def answer(value: Any) -> None:
    """One line of JSON, at once."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
