"""Whether perf_analyzer and the server's own counters say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.02


def differences(summary: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(what, as perf_analyzer has it, as the server counted it) of every measurement with metrics.

    Requests per second are compared over perf_analyzer's own window, tokens as their number: the server is idle before
    and after, so what it counted meanwhile is what perf_analyzer sent, unless somebody else used it too.
    """
    found = []
    for point in summary["points"]:
        for number, entry in enumerate(point["rounds"], 1):
            if "server" not in entry:
                continue
            place = f"level {point['level']:g}, round {number}"
            theirs = entry["perf_analyzer"]
            counted = entry["server"]["requests"] / theirs["window_s"]
            found.append((f"requests/s, {place}", theirs["requests_per_s"], counted))
            if "tokens" in entry["figures"]:
                found.append((f"tokens, {place}", entry["figures"]["tokens"], entry["server"]["tokens"]))
    return found


def disagreements(summary: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[str]:
    """Where the two differ by more than the tolerance, as sentences; with cancelling clients there is no agreement."""
    if summary["profile"].get("cancelling"):
        return []
    return [
        f"{what}: {ours:g} by perf_analyzer, {theirs:g} by the server's counters"
        for what, ours, theirs in differences(summary)
        if abs(ours - theirs) > tolerance * max(abs(ours), abs(theirs))
    ]
