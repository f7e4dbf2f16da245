"""A real Prometheus that scrapes a server for the length of a test or a picture."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import yaml

from launcher.ports import choose_ports
from launcher.runtime import PROJECT
from perf.errors import PerfError

CONFIG = PROJECT / "observability" / "prometheus.yml"
MISSING = "prometheus is missing: apt-get install prometheus"
_START_S = 30.0

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]  # labels, (seconds since 1970, value)


class Prometheus:
    """A context manager: Prometheus with the project's configuration, but for what it scrapes and how often.

    Args:
        metrics_url: host and port of the server's metrics.
        directory: where it keeps its data, which is not removed.
        scrape_s: seconds between scrapes.

    Raises:
        PerfError: there is no Prometheus, or it does not start.
    """

    def __init__(self, metrics_url: str, directory: Path, scrape_s: int = 1) -> None:
        program = shutil.which("prometheus")
        if program is None:
            raise PerfError(MISSING)
        self._directory = directory
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"]["scrape_interval"] = f"{scrape_s}s"
        config["rule_files"] = [str(CONFIG.with_name(name)) for name in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [metrics_url]}]
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.url = f"127.0.0.1:{choose_ports('127.0.0.1', {'Prometheus': 0})['Prometheus']}"
        self._command = [
            program, f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={self.url}", "--log.level=warn",
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        log = self._directory / "prometheus.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(self._command, stdout=file, stderr=file, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://{self.url}/-/ready", timeout=2).ok:
                    return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise PerfError(f"prometheus does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def range(self, query: str, start: float, end: float, step_s: float = 1.0) -> Series:
        """The values of a PromQL expression over a time; those that are no numbers are left out.

        Raises:
            PerfError: Prometheus refuses the query.
        """
        found = self._ask("query_range", {"query": query, "start": start, "end": end, "step": step_s})
        return [
            (entry["metric"], [(at, float(value)) for at, value in entry["values"] if math.isfinite(float(value))])
            for entry in found["result"]
        ]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that fire or are about to."""
        response = requests.get(f"http://{self.url}/api/v1/alerts", timeout=30).json()
        return list(response["data"]["alerts"])

    def _ask(self, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        response = requests.get(f"http://{self.url}/api/v1/{what}", params=parameters, timeout=30).json()
        if response["status"] != "success":
            raise PerfError(f"Prometheus refuses {parameters['query']}: {response.get('error')}")
        data: dict[str, Any] = response["data"]
        return data
