"""What a soak run found: counts of the clients, memory of the server over time, and whether that is in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

MB = 1 << 20
# Growth between the medians of the second and the last quarter that is noise: the greater of the two.
NOISE_MB, NOISE_SHARE = 16.0, 0.03


@dataclass(frozen=True)
class Sample:
    """The server at one moment; memory in MB by process (tritonserver, the stubs) and of /dev/shm."""

    at_s: float
    memory_mb: Mapping[str, float]
    gauges: Mapping[str, float]


@dataclass
class Clients:
    """What the clients saw. `unexpected` are errors that nobody asked for, with an example each."""

    outcomes: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    killed: int = 0  # client processes


def quarter(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    """The samples of a quarter (1 .. 4) of the run's time."""
    end = samples[-1].at_s
    return [sample for sample in samples if (number - 1) * end / 4 <= sample.at_s <= number * end / 4]


def growth_mb(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Medians of one memory figure in the second and the last quarter."""
    second, last = (median(s.memory_mb[name] for s in quarter(samples, number)) for number in (2, 4))
    return second, last


def problems(clients: Clients, samples: Sequence[Sample], final: Mapping[str, float]) -> list[str]:
    """What is not in order.

    Args:
        clients: totals of all clients.
        samples: over the run, after the first request.
        final: gauges and counters once all clients have gone: all must be 0.
    """
    found = [f"{count} x {error}" for error, count in clients.unexpected.most_common()]
    found += [f"{name} is {value:g} at the end" for name, value in final.items() if value]
    for name in samples[0].memory_mb:
        second, last = growth_mb(samples, name)
        if last - second > max(NOISE_MB, NOISE_SHARE * second):
            found.append(f"memory of {name} grew from {second:.1f} to {last:.1f} MB")
    for wanted in ("finished", "cancelled", "left", "refused", "timed out", "queue full"):
        if not clients.outcomes[wanted]:
            found.append(f"no request was {wanted}: the run was too short or too easy")
    return found


def table(clients: Clients, samples: Sequence[Sample]) -> str:
    """A summary to read."""
    minutes = samples[-1].at_s / 60
    lines = [f"{minutes:.1f} minutes, {clients.tokens} tokens, {clients.killed} client processes killed", ""]
    lines += [f"{name:<28} {count:>8}" for name, count in sorted(clients.outcomes.items())]
    lines += ["", f"{'':<28} {'smallest':>10} {'median':>10} {'largest':>10}"]
    for name in samples[0].gauges:
        values = [sample.gauges[name] for sample in samples]
        lines.append(f"{name:<28} {min(values):>10g} {median(values):>10g} {max(values):>10g}")
    names = list(samples[0].memory_mb)
    lines += ["", f"{'memory, MB':<28}" + "".join(f" {name:>12}" for name in names)]
    for sample in samples[:: max(1, len(samples) // 10)]:
        minute = f"after {sample.at_s / 60:.1f} minutes"
        lines.append(f"{minute:<28}" + "".join(f" {sample.memory_mb[name]:>12.1f}" for name in names))
    for title, which in (("median of the 2nd quarter", 0), ("median of the last quarter", 1)):
        lines.append(f"{title:<28}" + "".join(f" {growth_mb(samples, name)[which]:>12.1f}" for name in names))
    return "\n".join(lines)
