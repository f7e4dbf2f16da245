"""A server under load that a Prometheus watches."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from perf import analyzer, dashboard, profile
from perf.prometheus import Prometheus, Series
from perf.runner import Run, new_directory
from perf.target import Target, target


def watch(
    load: profile.Profile, served: Target, directory: Path, asked: list[dashboard.Query]
) -> list[tuple[dashboard.Query, Series]]:
    """Run a profile once at a server while a Prometheus scrapes it, and what it then says to the queries.

    Raises:
        PerfError: there is no Prometheus or perf_analyzer, or one of them fails.
    """
    assert served.metrics_url is not None
    with Prometheus(served.metrics_url, directory) as prometheus:
        started = time.time()
        program, _ = analyzer.find()
        Run(program, load, served, new_directory(load, directory)).measure(
            lambda text: print(f"  {text}", file=sys.stderr)
        )
        time.sleep(2)  # the last values are published and scraped
        return dashboard.answers(prometheus, asked, started, time.time())


def run(name: str, output: Path) -> int:
    """See `python -m perf dashboard --help`."""
    load = profile.load(name).model_copy(update={"rounds": 1})
    print("starting the server", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory, target(load, None, None) as served:
        found = watch(load, served, Path(directory), dashboard.queries())
    dashboard.draw(found, output)
    print(output)
    for line in (missing := dashboard.without_data(found)):
        print(f"no data: {line}", file=sys.stderr)
    return 1 if missing else 0
