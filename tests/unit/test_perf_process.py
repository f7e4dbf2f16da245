"""Running perf_analyzer: its failures are shown, and nothing of it is left."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from build_engines import interrupt
from perf import process
from perf.__main__ import main
from perf.errors import PerfError


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def children_named(name: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any(name in a for a in p.info["cmdline"] or [])]


def test_failure_shows_what_was_said_and_the_command(tmp_path: Path) -> None:
    program = script(tmp_path / "fails", "echo 'error: no such model' >&2; echo 'Usage: x'; exit 3")
    with pytest.raises(
        PerfError, match=r"(?s)exit code 3:\nerror: no such model\nthe command: .*fails -m generate"
    ) as caught:
        process.run([program, "-m", "generate"], tmp_path / "log", 30)
    assert "Usage" not in str(caught.value)


def test_too_slow_is_stopped(tmp_path: Path) -> None:
    program = script(tmp_path / "sleeps-in-test-process", "trap '' TERM; while true; do sleep 1; done")
    with pytest.raises(PerfError, match=r"longer than 0\.5 s"):
        process.run([program], tmp_path / "log", 0.5)
    assert children_named("sleeps-in-test-process") == []


def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    program = script(tmp_path / "interrupted-in-test-process", "while true; do sleep 1; done")
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt.install()
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            process.run([program], tmp_path / "log", 60)
    finally:
        timer.join()
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
        interrupt._seen = False
    assert time.monotonic() - started < 20
    assert children_named("interrupted-in-test-process") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing"], "there is no profile 'nothing'"),
        (["run", "smoke", "--rounds", "0"], "--rounds must be at least 1"),
        (["run", "smoke", "--url", "127.0.0.1:1"], "no Triton server answers gRPC at 127.0.0.1:1"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "install", lambda: None)
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_profile_of_a_model_that_is_not_there_is_skipped(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "install", lambda: None)
    monkeypatch.setattr("perf.target.loadable_models", lambda repository, env: ["target", "generate"])
    assert main(["run", "images"]) == 0
    # Its console has a copy of stderr of its own.


def test_address_needs_a_port(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "install", lambda: None)
    with pytest.raises(SystemExit):
        main(["run", "smoke", "--url", "http://127.0.0.1:8001"])
    assert "is not host:port" in capsys.readouterr().err
