"""One run of a profile: every level in every round, in turns, with the raw exports kept."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.environment import machine
from launcher.runtime import CACHE
from perf import commands, export, figures, inputs, pauses, process, scrape, yardstick
from perf.cancelling import CancellingClients
from perf.cpu_time import CpuTime, cpu_time
from perf.profile import Profile
from perf.target import Target, configuration, first_input

RUNS = CACHE / "load"
_ATTEMPTS = 3
_SUCCESS = {"generate": 'tandem_requests_total{outcome="success"'}
_TOKENS = "tandem_generated_tokens_total"


def new_directory(profile: Profile, runs: Path = RUNS) -> Path:
    """A directory for a run, under the profile's name and the time."""
    directory = runs / f"{profile.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    (directory / "raw").mkdir(parents=True)
    return directory


@dataclass(frozen=True, slots=True)
class Measurement:
    """One level in one round."""

    level: float
    count: int
    name: str  # of its files


class Run:
    """Measures a profile at a server.

    Args:
        program: perf_analyzer.
        profile: what to measure.
        target: where.
        directory: of the run, see `new_directory`.
        paused: tells when the server was stopped, where it is measured in turns with another one (perf/turns.py).
            The machine's speed is not measured then.
    """

    def __init__(
        self,
        program: Path,
        profile: Profile,
        target: Target,
        directory: Path,
        paused: Callable[[], Sequence[pauses.Pause]] | None = None,
    ) -> None:
        self._program, self._profile, self._target, self._directory = program, profile, target, directory
        self._paused = paused
        self._salt = secrets.token_hex(4)
        self._image_input = "" if profile.model == "generate" else first_input(target.url, profile.model)
        self._cancelling: dict[str, int] = {}
        self._started = time.time()
        self._levels = list(zip(profile.load.levels, profile.counts(), strict=True))
        self._rounds: dict[float, list[dict[str, Any]]] = {level: [] for level, _ in self._levels}

    def measure(self, advance: Callable[[str], None]) -> dict[str, Any]:
        """Measure everything, and return and store the summary; `advance` is told what comes next.

        Raises:
            PerfError: perf_analyzer failed.
        """
        for _ in self.steps(advance):
            pass
        advance("computing the figures")
        return self.summary()

    def steps(self, advance: Callable[[str], None]) -> Generator[None]:
        """What `measure` does, with a pause after the warm-up and after each measurement.

        Raises:
            PerfError: perf_analyzer failed.
        """
        profile, levels = self._profile, self._levels
        with contextlib.ExitStack() as stack:
            if self._target.metrics_url:
                path = self._directory / "metrics.jsonl"
                stack.enter_context(scrape.Scraper(self._target.metrics_url, path))
            advance("warming up")
            level, count = levels[-1]
            # The same requests as later, so that nothing that is prepared on first use is measured.
            self._analyze(Measurement(level, count, "warm-up"))
            self._settle()
            if profile.cancelling:
                beside = stack.enter_context(CancellingClients(self._target.url, profile.cancelling))
            yield
            for number in range(profile.rounds):
                for level, count in levels if number % 2 == 0 else reversed(levels):
                    advance(f"round {number + 1} of {profile.rounds}, {profile.load.kind} {level:g}")
                    name = f"{profile.load.kind}-{level:g}-round-{number + 1}"
                    self._rounds[level].append(self._measured(Measurement(level, count, name)))
                    yield
            if profile.cancelling:
                self._cancelling = {name: getattr(beside, name) for name in ("cancelled", "ended", "failed")}

    def _measured(self, measurement: Measurement) -> dict[str, Any]:
        """A round that perf_analyzer has written down."""
        for attempt in range(2, _ATTEMPTS + 1):
            with contextlib.suppress(export.UnfinishedExportError):
                return self._round(measurement)
            self._settle()
            measurement = replace(measurement, name=f"{measurement.name}-attempt-{attempt}")
        return self._round(measurement)

    def _round(self, measurement: Measurement) -> dict[str, Any]:
        before = self._totals()
        speeds = [yardstick.speed()] if self._paused is None else []
        before_cpu = self._cpu()
        path = self._analyze(measurement)
        used = self._cpu().since(before_cpu)
        if self._paused is not None:
            pauses.store(path, self._paused())
        read = export.read(path)
        found = figures.figures(read.requests)
        if used.ran_s:
            per = "token" if "tokens" in found else "request"
            found[f"cpu_ms_per_{per}"] = 1000 * used.ran_s / found.get("tokens", found["requests"])
        made: dict[str, Any] = {
            "export": str(path.relative_to(self._directory)),
            "figures": found,
            "granted": used.granted if used.ran_s else None,
            "perf_analyzer": {
                "requests_per_s": commands.reported_rate(path.with_suffix(".csv")),
                "window_s": read.window_s,
            },
        }
        if speeds:
            speeds.append(yardstick.speed())
            wall, cpu = (fmean(values) for values in zip(*speeds, strict=True))
            # What the server itself got of the cores says more than what the yardstick got before and after.
            made["yardstick"] = {"wall": used.granted * cpu if used.ran_s else wall, "cpu": cpu}
        if before is not None and self._target.metrics_url:
            goal = scrape.total(before, self._success) + len(read.requests)
            after = scrape.settled(self._target.metrics_url, self._success, goal)
            made["server"] = {
                "requests": scrape.total(after, self._success) - scrape.total(before, self._success),
                "tokens": scrape.total(after, _TOKENS) - scrape.total(before, _TOKENS),
            }
        return made

    @property
    def _success(self) -> str:
        return _SUCCESS.get(self._profile.model, f'nv_inference_request_success{{model="{self._profile.model}"')

    def _cpu(self) -> CpuTime:
        """What the server's processes have used; zeros for a server that we did not start."""
        return cpu_time(self._target.pids())

    def _settle(self) -> None:
        """Wait until what was sent before is counted, or the next round would have it."""
        if self._target.metrics_url:
            scrape.wait_for_standstill(self._target.metrics_url, self._success)

    def _totals(self) -> scrape.Totals | None:
        return scrape.read(self._target.metrics_url) if self._target.metrics_url else None

    def _analyze(self, measurement: Measurement) -> Path:
        raw = self._directory / "raw"
        path = raw / f"{measurement.name}.json"
        data = raw / f"{measurement.name}.inputs.json"
        # Twice as many: perf_analyzer's streams go through the list at their own pace, and shall not meet an end.
        salt = f"{self._salt}/{measurement.name}"
        inputs.write(data, inputs.entries(self._profile, 2 * measurement.count, salt, self._image_input))
        line = commands.command(
            self._program, self._profile, measurement.level, measurement.count, self._target.url, data, path
        )
        process.run(line, path.with_suffix(".log"), self._profile.timeout_s)
        return path

    def summary(self) -> dict[str, Any]:
        """Of what was measured; it is stored as well."""
        points = []
        for level, measured in self._rounds.items():
            requests = [r for entry in measured for r in export.read(self._directory / entry["export"]).requests]
            seconds = sum(entry["figures"]["seconds"] for entry in measured)
            points.append({"level": level, "all": figures.figures(requests, seconds), "rounds": measured})
        config = configuration(self._target.url, self._profile.model)
        summary = {
            "profile": {"name": self._profile.name, **self._profile.model_dump(mode="json")},
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._started)),
            "seconds": time.time() - self._started,
            "machine": machine(),
            "yardstick": yardstick.NAME if self._paused is None else None,
            "commit": self._target.commit,
            "server": {
                "url": self._target.url,
                "started_for_this_run": self._target.started,
                "settings": self._target.settings,
                "environment": self._target.environment,
                "engines": self._target.engines,
                "model_parameters": {k: v["string_value"] for k, v in config.get("parameters", {}).items()},
            },
            "perf_analyzer": str(self._program),
            "points": points,
            "cancelling": self._cancelling,
        }
        (self._directory / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return summary
