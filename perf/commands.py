"""perf_analyzer's command line for one measurement of a profile."""

from __future__ import annotations

from pathlib import Path

from perf.profile import Bursts, Concurrency, Profile

_MICROSECONDS = 1_000_000


def command(
    program: Path, profile: Profile, level: float, count: int, url: str, inputs: Path, export: Path
) -> list[str]:
    """Measure `count` requests at one level.

    A number of requests, not windows of time: perf_analyzer writes no export at all when its windows differ too
    much, as they do on a shared machine, and a window cuts requests off.
    """
    made = [str(program), "-m", profile.model, "-u", url, "-i", "grpc", "--async"]
    if profile.model == "generate":
        made.append("--streaming")
    made += ["--input-data", str(inputs), "--request-count", str(count)]
    made += ["--profile-export-file", str(export), "-f", str(export.with_suffix(".csv"))]
    if isinstance(profile.load, Concurrency):
        return [*made, "--concurrency-range", f"{level:g}"]
    if isinstance(profile.load, Bursts):
        intervals = export.with_suffix(".intervals")
        intervals.write_text("\n".join(map(str, burst_intervals(int(level), profile.load.every_s))) + "\n")
        return [*made, "--request-intervals", str(intervals)]
    return [*made, "--request-rate-range", f"{level:g}", "--request-distribution", "poisson"]


def burst_intervals(size: int, every_s: float) -> list[int]:
    """Microseconds between requests: a millisecond within a burst, the rest of the period after it."""
    inner = [1000] * (size - 1)
    return [*inner, max(1000, round(every_s * _MICROSECONDS) - sum(inner))]


def reported_rate(csv: Path) -> float:
    """Requests per second, as perf_analyzer's own report says."""
    header, row, *_ = csv.read_text(encoding="utf-8").splitlines()
    return float(row.split(",")[header.split(",").index("Inferences/Second")])
