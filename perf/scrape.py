"""The server's metrics during a run: read twice a second, by a thread."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import requests
from prometheus_client.parser import text_string_to_metric_families

INTERVAL_S = 0.5
# The parser gives every counter the ending _total, also those of Triton and of histograms, which have none.
_SERIES = re.compile(r"(_bucket|_sum|_count|^nv_\w+?)_total$")
_WANTED = ("tandem_", "nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count")
GIVE_UP_S = 5.0

Totals = dict[str, float]


def parse(text: str) -> Totals:
    """Values by name and labels, as in `tandem_requests_total{outcome="success"}`."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_WANTED):
                labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
                name = _SERIES.sub(r"\1", sample.name)
                found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def read(url: str) -> Totals:
    """Read the endpoint at a host and port, or a whole URL.

    Raises:
        requests.RequestException: nothing answers there.
    """
    response = requests.get(url if "://" in url else f"http://{url}/metrics", timeout=5)
    response.raise_for_status()
    return parse(response.text)


def total(totals: Mapping[str, float], name: str) -> float:
    """Sum of a metric over all labels that `name` leaves open: `a` or `a{b="c"` (without the brace at the end)."""
    return sum(
        value for key, value in totals.items() if key == name or key.startswith((f"{name}{{", f"{name},", f"{name}}}"))
    )


def settled(url: str, key: str, at_least: float) -> Totals:
    """A reading in which a counter has come to a value, or after some seconds without that."""
    deadline = time.monotonic() + GIVE_UP_S
    while total(read(url), key) < at_least and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(INTERVAL_S + 0.1)
    return read(url)


def wait_for_standstill(url: str, key: str) -> None:
    """Wait until a counter of an idle server has all that was counted, or some seconds if the server is busy."""
    deadline = time.monotonic() + GIVE_UP_S
    previous, current = math.nan, total(read(url), key)
    while previous != current and time.monotonic() < deadline:
        time.sleep(INTERVAL_S + 0.1)
        previous, current = current, total(read(url), key)


class Scraper:
    """A context manager that gathers (time in ns since 1970, values) twice a second and writes them to a file."""

    def __init__(self, url: str, path: Path) -> None:
        self._url, self._path = url, path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._path.open("w", encoding="utf-8") as file:
            while not self._stop.wait(INTERVAL_S):
                try:
                    values = read(self._url)
                except (requests.RequestException, ValueError):
                    continue  # one point less in a plot
                file.write(json.dumps([time.time_ns(), values]) + "\n")


def load(path: Path) -> list[tuple[int, Totals]]:
    """What a scraper wrote; nothing where it wrote nothing."""
    if not path.is_file():
        return []
    return [(at, values) for at, values in map(json.loads, path.read_text(encoding="utf-8").splitlines())]
