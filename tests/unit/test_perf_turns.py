"""Measuring two servers in turns, the commit that one of them serves, and when a baseline's is measured again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from build_engines import interrupt
from perf import checkout, export, pauses, profile, session, turns
from perf.__main__ import main
from perf.errors import PerfError

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def steps(name: str, log: list[str], count: int = 2, fails_at: int = -1) -> Generator[None]:
    try:
        for number in range(count):
            if number == fails_at:
                raise PerfError("perf_analyzer ended")
            log.append(f"{name}{number}")
            yield
    finally:
        log.append(f"{name} closed")


class Logged(contextlib.AbstractContextManager[object]):
    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __enter__(self) -> None:
        self.log.append("turns")

    def __exit__(self, *about: object) -> None:
        self.log.append("both")


def test_each_step_is_taken_by_both_in_turns_of_its_own() -> None:
    log: list[str] = []
    turns.together(Logged(log), [steps("a", log), steps("b", log)])
    pairs = [["turns", "a0", "b0", "both"], ["turns", "a1", "b1", "both"], ["turns", "a closed", "b closed", "both"]]
    assert [sorted(log[start : start + 4]) for start in range(0, 12, 4)] == [sorted(pair) for pair in pairs]
    assert [log[place] for place in (0, 3, 4, 7, 8, 11)] == ["turns", "both"] * 3


def test_where_one_fails_the_other_ends_its_step_and_is_closed() -> None:
    log: list[str] = []
    with pytest.raises(PerfError):
        turns.together(Logged(log), [steps("a", log), steps("b", log, fails_at=1)])
    assert log.count("a closed") == log.count("b closed") == 1
    assert "a1" in log


@pytest.fixture
def busy() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that do nothing else than run."""
    found = [subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"]) for _ in range(2)]
    yield found
    for process in found:
        process.kill()
        process.wait()


def state(process: subprocess.Popen[bytes]) -> str:
    return str(psutil.Process(process.pid).status())


def test_only_one_of_two_groups_runs_at_a_time(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    both = turns.Turns([[process.pid] for process in busy], tmp_path / "log", 0.02)
    seen = set()
    started = time.time_ns()
    with both:
        while len(both.pauses(0)) < 5 or len(both.pauses(1)) < 5:
            seen.add(tuple(state(process) == psutil.STATUS_STOPPED for process in busy))
    assert {(True, False), (False, True)} <= seen
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2
    ended = time.time_ns()
    pauses = sorted(both.pauses(0) + both.pauses(1))
    assert all(started < begin < end < ended for begin, end in pauses)
    assert all(first[1] == second[0] for first, second in pairwise(pauses)), "one pauses when the other's pause ends"


def test_the_last_pause_is_open_until_it_ends(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("100 0\n200 1\n300 0\n")
    open_end = turns.Turns([[], []], tmp_path / "log")
    assert open_end.pauses(0) == [(200, 300)]
    assert open_end.pauses(1)[0] == (100, 200)
    assert open_end.pauses(1)[1][1] > time.time_ns()


def test_a_killed_parent_leaves_nothing_stopped(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    pids = [[process.pid] for process in busy]
    code = (
        "import os, pathlib, signal, time; from perf.turns import Turns\n"
        f"with Turns({pids}, pathlib.Path({str(tmp_path / 'log')!r}), 0.02):\n"
        "    time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").read_text().endswith(" -1\n") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "log").read_text().count("\n") > 5, "they took turns before"
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2


def test_a_killed_turnstile_leaves_nothing_stopped(busy: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    with turns.Turns([[process.pid] for process in busy], tmp_path / "log", 60) as both:
        while not both.pauses(1):
            time.sleep(0.01)
        time.sleep(0.1)
        assert [state(process) for process in busy] == [psutil.STATUS_RUNNING, psutil.STATUS_STOPPED]
        assert both._process is not None
        both._process.kill()
    assert [state(process) for process in busy] == [psutil.STATUS_RUNNING] * 2


@pytest.mark.parametrize("name", ["poisson", "bursts"])
def test_loads_by_the_clock_are_not_measured_in_turns(name: str) -> None:
    with pytest.raises(PerfError, match="by the clock"):
        turns.check(profile.load(name))


def test_times_without_pauses() -> None:
    active = pauses.ActiveTime([(100, 150), (300, 400)])
    assert [active.at(time) for time in (50, 100, 120, 150, 200, 300, 399, 400, 500)] == [
        50, 100, 100, 100, 150, 250, 250, 250, 350
    ]  # fmt: skip
    assert pauses.ActiveTime([]).at(7) == 7


def test_an_export_is_read_without_its_pauses(tmp_path: Path) -> None:
    """A pause of a second in the middle of each request takes a second off it."""
    path = tmp_path / "export.json"
    path.write_bytes((Path(__file__).parent / "data" / "perf_export.json").read_bytes())
    before = export.read(path).requests
    begin = before[0].arrivals[0] + 1
    pauses.store(path, [(begin, begin + 1000)])
    for old, new in zip(before, export.read(path).requests, strict=True):
        times = [(old.sent, new.sent), *zip(old.arrivals, new.arrivals, strict=True)]
        assert all(b == a - min(1000, max(0, a - begin)) for a, b in times)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a model, whose engine git does not know: of code that is old, then newer, then changed."""
    directory = tmp_path / "project"
    model = directory / "model_repository" / "target" / "1"
    for made in (model / "engine", directory / "tandem", directory / "model_repository" / "later" / "1" / "engine"):
        made.mkdir(parents=True)
    (model / "model.py").write_text("old")
    (directory / "tandem" / "code.py").write_text("old")
    (directory / ".gitignore").write_text("engine\n")
    (model / "engine" / "weights").write_text("many")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "it"]
    for arguments in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", "-C", directory, *arguments], check=True)
    (directory / "tandem" / "code.py").write_text("newer")
    subprocess.run(["git", "-C", directory, *commit], check=True)
    (directory / "tandem" / "code.py").write_text("new")
    return directory


@needs_git
def test_the_tree_of_a_commit_has_its_files_and_the_engines_that_are_here(project: Path) -> None:
    with checkout.tree("HEAD~1", project) as tree:
        assert (tree / "tandem" / "code.py").read_text() == "old"
        assert (tree / "model_repository" / "target" / "1" / "engine" / "weights").read_text() == "many"
        assert not (tree / "model_repository" / "later").exists()
    assert not tree.exists()
    assert (project / "model_repository" / "target" / "1" / "engine" / "weights").is_file()


@needs_git
def test_the_name_of_what_is_checked_out_says_whether_files_differ(project: Path) -> None:
    head = checkout.known("HEAD", project)
    assert checkout.current(project) == f"{head}+"
    (project / "tandem" / "code.py").write_text("newer")
    assert checkout.current(project) == head


@needs_git
@pytest.mark.parametrize("commit", ["no-such-commit", "--help", ""])
def test_an_unknown_commit_is_an_error(project: Path, commit: str) -> None:
    with pytest.raises(PerfError, match="git rev-parse"), checkout.tree(commit, project):
        pass


@needs_git
def test_without_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.current(tmp_path) == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.current(tmp_path) == ""
    with pytest.raises(PerfError, match="git is needed"):
        checkout.known("HEAD", tmp_path)


def summary(commit: str = "abc", started: bool = True, **server: Any) -> dict[str, Any]:
    return {
        "commit": commit,
        "server": {"started_for_this_run": started, "environment": "a", "engines": {"target": "1"}, **server},
    }


def test_a_baseline_is_measured_again_where_only_the_commit_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "known", lambda commit: commit)
    assert session.confirmable(profile.load("steady"), summary("def+"), summary()) == ("abc", "")


@pytest.mark.parametrize(
    ("run", "baseline", "why"),
    [
        (summary(), summary(engines={"target": "2"}), "engines differ"),
        (summary(environment="b"), summary(), "environment differ"),
        (summary(), summary("abc+"), "not committed"),
        (summary(), summary(""), "unknown commit"),
        (summary(started=False), summary(), "a server was given"),
    ],
)  # fmt: skip
def test_a_baseline_of_another_kind_is_not_measured_again(
    run: dict[str, Any], baseline: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "known", lambda commit: commit)
    commit, said = session.confirmable(profile.load("steady"), run, baseline)
    assert commit == ""
    assert why in said


def test_a_baseline_of_a_load_by_the_clock_is_not_measured_again() -> None:
    assert "by the clock" in session.confirmable(profile.load("poisson"), summary(), summary())[1]


def test_against_starts_its_own_servers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "install", lambda: None)
    assert main(["run", "smoke", "--against", "HEAD", "--url", "127.0.0.1:8001"]) == 1
    assert "--against starts both servers" in capsys.readouterr().err
