"""One measurement by perf_analyzer: so many requests at one concurrency, and what its export says of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import export, process
from perf.errors import PerfError
from perf.figures import latency_ms, percentile, span_s

_TIMEOUT_S = 180.0
_ATTEMPTS = 3  # perf_analyzer 2.50 now and then waits for ever for answers that it has had


@dataclass(frozen=True, slots=True)
class Load:
    """What one run measured."""

    per_second: float  # over the requests' own times: perf_analyzer's rate counts up to the next whole second
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
        PerfError: it failed, or took too long several times; the message holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as directory:
        report = Path(directory) / "export.json"
        command = [str(program), "-m", model, "-u", url, "-i", "grpc", "--async", "--input-data", "random"]
        command += ["--concurrency-range", str(concurrency), "--request-count", str(requests)]
        command += ["--profile-export-file", str(report), *options]
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                process.run(command, report.with_suffix(".log"), _TIMEOUT_S)
                break
            except PerfError:
                if attempt == _ATTEMPTS:
                    raise
        found = export.read(report).requests
    milliseconds = latency_ms(found)
    return Load(len(found) / span_s(found), percentile(milliseconds, 50), percentile(milliseconds, 95))
