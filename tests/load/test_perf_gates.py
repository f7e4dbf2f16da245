"""What the comparison of load tests promises: a planted regression of 15 % is flagged, reruns of one server are not.

Each compares the files here with the commit that is checked out, as `python -m perf run steady --against HEAD` does, so
run it where nothing is changed. `make load-gates` takes three quarters of an hour; PERF_RERUNS sets how many reruns.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from launcher.server import REPOSITORY, Options, TritonServer
from perf import agreement, analyzer, compare, profile, turns
from perf.runner import new_directory
from perf.target import Target, target

RERUNS = int(os.environ.get("PERF_RERUNS", "10"))
STEADY = profile.load("steady")
pytestmark = [pytest.mark.load, pytest.mark.timeout(3600 * 3)]

# The engine does 3 of 20 passes twice, which changes nothing but the time: K and V are written where they were.
SLOW_MODEL = """
from tandem.engines import openvino
from tandem.triton.executor_models import TargetModel as TritonPythonModel

forward, calls = openvino.OpenVinoEngine.forward, 0


def slow_forward(self, rows, width=0):
    global calls
    calls += 1
    if calls % 20 in (0, 7, 14):
        forward(self, rows, width)
    return forward(self, rows, width)


openvino.OpenVinoEngine.forward = slow_forward
__all__ = ["TritonPythonModel"]
"""


def slow_repository(directory: Path) -> Path:
    """The models as they are, but for the engine's speed."""
    for model in ("generate", "target"):
        source, copy = REPOSITORY / model, directory / model
        (copy / "1").mkdir(parents=True)
        (copy / "config.pbtxt").write_bytes((source / "config.pbtxt").read_bytes())
        for part in (source / "1").iterdir():
            if part.name != "__pycache__":
                (copy / "1" / part.name).symlink_to(part.resolve())
    (directory / "target" / "1" / "model.py").unlink()
    (directory / "target" / "1" / "model.py").write_text(SLOW_MODEL)
    return directory


def compared(directory: Path, new: AbstractContextManager[Target], name: str) -> list[compare.Change]:
    """A server beside that of the commit, in turns."""
    program, _ = analyzer.find()
    with target(STEADY, commit="HEAD") as old, new as served:
        summaries = turns.measure(program, STEADY, served, old, new_directory(STEADY, directory), print)
    for summary in summaries:
        assert agreement.disagreements(summary) == []
    changes = compare.compare(*summaries, in_turns=True)
    show(name, changes)
    return changes


@contextlib.contextmanager
def slow(directory: Path) -> Iterator[Target]:
    options = Options(repository=slow_repository(directory), models=("target", "generate"), env=STEADY.environment())
    with TritonServer(options) as server:
        yield Target(server.grpc_url, server.metrics_url, True, server)


def show(name: str, changes: list[compare.Change]) -> None:
    for change in changes:
        print(
            f"{name}: {change.figure.title} {change.before:.1f} -> {change.after:.1f}, ratio {change.ratio:.3f} "
            f"({change.low:.3f}-{change.high:.3f}), p = {change.p:.4f} {change.flag}"
        )


def test_a_planted_regression_of_15_percent_is_flagged(tmp_path):
    changes = compared(tmp_path / "runs", slow(tmp_path / "models"), "planted")
    assert {"tokens/s", "server's CPU time per token, ms"} <= {c.figure.title for c in changes if c.flag == "worse"}
    assert "better" not in {change.flag for change in changes}


@pytest.mark.parametrize("number", range(1, RERUNS + 1))
def test_reruns_of_the_same_server_raise_no_flag(tmp_path, number):
    changes = compared(tmp_path, target(STEADY), f"rerun {number}")
    assert [change for change in changes if change.flag] == []
