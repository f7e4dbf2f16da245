"""When a run is measured again in turns with its baseline's commit, and what then decides."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import pytest

from build_engines import interrupt
from perf import checkout, compare, profile, session
from perf.__main__ import main
from perf.compare import Change


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


@pytest.mark.parametrize(("flag", "commit", "expected"), [("worse", "abc", 7), ("worse", "", 1), ("", "abc", 0)])
def test_what_a_baseline_flags_is_decided_in_turns(
    flag: str, commit: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """7 stands for what measuring in turns said: only where something is flagged, and the commit can be served."""
    change = Change(4, compare.LANGUAGE[0], 1, 1, 1, 1, 1, 1, flag)
    monkeypatch.setattr(session, "target", lambda *of: contextlib.nullcontext())
    monkeypatch.setattr(session, "new_directory", lambda chosen: tmp_path)
    monkeypatch.setattr(session, "Run", lambda *of: argparse.Namespace(measure=lambda advance: {}))
    monkeypatch.setattr(session, "compared", lambda run, wanted: ([change], {"commit": "abc"}, []))
    monkeypatch.setattr(session, "confirmable", lambda *of: (commit, "" if commit else "it is unknown"))
    monkeypatch.setattr(session, "finish", lambda *of: None)
    monkeypatch.setattr(session, "in_turns", lambda chosen, program, commit: 7)
    arguments = argparse.Namespace(url=None, metrics_url=None, baseline=None, store_baseline=False)
    assert session.one(profile.load("steady"), tmp_path, arguments) == expected
