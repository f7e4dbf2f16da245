"""What a measurement does where perf_analyzer wrote nothing down, and what the server had still to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perf import profile, runner, scrape
from perf.export import UnfinishedExportError
from perf.target import Target

URL = "127.0.0.1:9"  # nobody listens there


@pytest.fixture
def run(tmp_path: Path) -> runner.Run:
    return runner.Run(Path("perf_analyzer"), profile.load("smoke"), Target(URL, URL, False, None), tmp_path)


def test_a_round_without_export_is_repeated_when_its_requests_are_counted(
    run: runner.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    failures = 1

    def one_round(measurement: runner.Measurement) -> dict[str, Any]:
        done.append(measurement.name)
        if done.count("wait") < failures:
            raise UnfinishedExportError("nothing")
        return {}

    monkeypatch.setattr(run, "_round", one_round)
    monkeypatch.setattr(scrape, "wait_for_standstill", lambda url, key: done.append("wait"))
    assert run._measured(runner.Measurement(1, 2, "round")) == {}
    assert done == ["round", "wait", "round-attempt-2"]
    done, failures = [], 3
    with pytest.raises(UnfinishedExportError):
        run._measured(runner.Measurement(1, 2, "round"))


def test_counters_of_an_idle_server_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [3.0, 3.5, 5.0, 5.0, 6.0]
    monkeypatch.setattr(scrape, "read", lambda url: {"requests": values.pop(0)})
    monkeypatch.setattr(scrape.time, "sleep", lambda seconds: None)
    scrape.wait_for_standstill(URL, "requests")
    assert values == [6.0]


def test_a_server_that_others_use_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(1_000_000))
    monkeypatch.setattr(scrape, "read", lambda url: {"requests": float(next(values))})
    monkeypatch.setattr(scrape, "GIVE_UP_S", 0.01)
    monkeypatch.setattr(scrape, "INTERVAL_S", -0.1)
    scrape.wait_for_standstill(URL, "requests")
