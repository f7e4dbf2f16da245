"""One measurement by perf_analyzer: so many requests at one concurrency, and what its report says of them."""

from __future__ import annotations

import csv
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Load:
    """What one run measured."""

    per_second: float
    p50_ms: float
    p95_ms: float


def measure(program: Path, url: str, model: str, concurrency: int, requests: int, options: Sequence[str] = ()) -> Load:
    """Send `requests` single inferences by gRPC, `concurrency` at a time, and wait for their end.

    Args:
        program: perf_analyzer.
        url: host and port of the server's gRPC.
        model: whose input is filled with random data.
        concurrency: requests under way at a time.
        requests: how many; a number and not a time, so that a slow moment of the machine does not end the run.
        options: more of perf_analyzer's own.

    Raises:
        RuntimeError: it failed; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as directory:
        report = Path(directory) / "report.csv"
        command = [str(program), "-m", model, "-u", url, "-i", "grpc", "--async", "--input-data", "random"]
        command += ["--concurrency-range", str(concurrency), "--request-count", str(requests), "-f", str(report)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not report.is_file():
            raise RuntimeError(f"perf_analyzer failed: {(done.stdout + done.stderr)[-2000:]}")
        (row,) = csv.DictReader(report.read_text(encoding="utf-8").splitlines())
    return Load(
        float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000, float(row["p95 latency"]) / 1000
    )  # microseconds in the report
