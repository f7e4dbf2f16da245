"""Chooses the cheapest configuration that keeps service targets: `python -m perf plan`."""
