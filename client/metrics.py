"""The server's metrics endpoint: one reading of it, and what two readings say together."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import requests
from prometheus_client.parser import text_string_to_metric_families

from client.errors import Unreachable

# The parser gives every counter the ending _total; the series of histograms, published as counters, have none.
_SERIES = re.compile(r"(_bucket|_sum|_count)_total$")

DEFAULT_METRICS_URL = "127.0.0.1:8002"


@dataclass(frozen=True)
class Sample:
    """One line of the exposition format."""

    name: str
    labels: Mapping[str, str]
    value: float


class Reading:
    """All samples of the `generate` model at one moment.

    Attributes:
        at: when they were read, seconds of the monotonic clock.
    """

    def __init__(self, text: str) -> None:
        self.at = time.monotonic()
        self._samples = [
            Sample(_SERIES.sub(r"\1", sample.name), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("tandem_")
        ]

    def __bool__(self) -> bool:
        return bool(self._samples)

    def value(self, name: str) -> float:
        """Sum of a metric over its labels; 0 where the server has no such metric."""
        return sum(sample.value for sample in self._samples if sample.name == name)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Values of a metric by one of its labels."""
        return {
            sample.labels[label]: sample.value
            for sample in self._samples
            if sample.name == name and label in sample.labels
        }


def read_metrics(url: str = DEFAULT_METRICS_URL, timeout: float = 5.0) -> Reading:
    """Read the metrics endpoint at a host and port, or at a whole URL.

    Raises:
        Unreachable: nothing answers there, or not with metrics.
    """
    if "://" not in url:
        url = f"http://{url}/metrics"
    try:
        response = requests.get(url, timeout=timeout)
        response.raise_for_status()
        return Reading(response.text)
    except (requests.RequestException, ValueError) as error:
        raise Unreachable(f"no metrics at {url}: {error}", "UNAVAILABLE") from None


def mean_between(before: Reading | None, after: Reading, histogram: str) -> float | None:
    """Mean of a histogram's observations between two readings, or since the start without the first.

    None where there were none.
    """
    sums, counts = f"{histogram}_sum", f"{histogram}_count"
    count = after.value(counts) - (before.value(counts) if before else 0.0)
    total = after.value(sums) - (before.value(sums) if before else 0.0)
    return total / count if count > 0 else None


def rate_between(before: Reading, after: Reading, counter: str) -> float:
    """Increase of a counter per second between two readings."""
    return (after.value(counter) - before.value(counter)) / max(after.at - before.at, 1e-9)
