"""One short load by the real perf_analyzer: the server counts the same, the report has the raw export's figures."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np

from launcher.runtime import PROJECT
from perf import agreement, analyzer, checkout, compare, export, pauses, profile, report, turns
from perf.runner import Run
from perf.target import Target, target

PROFILE = profile.load("smoke").model_copy(update={"rounds": 1, "requests": [2, 4]})


def test_smoke(server, tmp_path):
    program, _ = analyzer.find()
    (tmp_path / "raw").mkdir()
    summary = Run(program, PROFILE, Target(server.grpc_url, server.metrics_url, False), tmp_path).measure(print)

    pairs = agreement.differences(summary)
    assert len(pairs) == 4, "requests and tokens of both levels"
    assert agreement.disagreements(summary) == []
    # The negative control: a request that the server did not count is more than 2 % of these.
    summary["points"][0]["rounds"][0]["server"]["requests"] -= 1
    assert len(agreement.disagreements(summary)) == 1
    summary["points"][0]["rounds"][0]["server"]["requests"] += 1

    page = report.write(tmp_path, summary).read_text()
    for point, count in zip(summary["points"], (2, 4), strict=True):
        exported = json.loads((tmp_path / point["rounds"][0]["export"]).read_text(errors="replace"))
        requests = exported["experiments"][0]["requests"]
        assert len(requests) == count
        ttft = sorted((r["response_timestamps"][0] - r["timestamp"]) / 1e6 for r in requests)
        latency = sorted((r["response_timestamps"][-1] - r["timestamp"]) / 1e6 for r in requests)
        for name, values in (("ttft_ms", ttft), ("latency_ms", latency)):
            for percent in (50, 90, 99):
                expected = values[int(np.ceil(count * percent / 100)) - 1]
                assert point["all"][name][f"p{percent}"] == expected
                assert f"<td>{expected:.1f}</td>" in page
        assert [r["response_outputs"][-1]["generated_tokens"] for r in requests] == [24] * count
        assert point["all"]["tokens"] == 24 * count


def test_a_commit_is_served_from_its_own_files(tmp_path, monkeypatch):
    """Not from the working directory, which is the project's, nor from the project that is installed."""
    tree, marks = tmp_path / "tree", tmp_path / "marks"
    for name in ("tandem", "model_repository"):
        shutil.copytree(PROJECT / name, tree / name, symlinks=True)
    with (tree / "tandem" / "__init__.py").open("a") as file:
        file.write(f"\nopen({str(marks)!r}, 'a').write('loaded\\n')\n")
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(checkout, "tree", lambda commit: contextlib.nullcontext(tree))
    monkeypatch.setattr(checkout, "known", lambda commit: commit)
    with target(PROFILE, commit="abc") as served:
        assert served.commit == "abc"
    assert marks.read_text().count("loaded") >= 2, "by the stubs of target and generate"
    marks.unlink()
    with target(PROFILE):
        assert not marks.exists()


def test_two_servers_in_turns(server, start_server, tmp_path):
    """Each answers all of its requests, is stopped while the other runs, and neither is afterwards."""
    program, _ = analyzer.find()
    (tmp_path / "raw").mkdir()
    other = start_server(models=("target", "generate"), env={"TANDEM_GRAPH_MEMORY_MB": "0"})
    new, old = (Target(one.grpc_url, one.metrics_url, True, one) for one in (server, other))
    summaries = turns.measure(program, PROFILE, new, old, tmp_path, print)
    assert agreement.disagreements(summaries[0]) == agreement.disagreements(summaries[1]) == []
    assert len(compare.compare(*summaries, in_turns=True)) == 10
    for summary, directory in zip(summaries, (tmp_path, tmp_path / "baseline"), strict=True):
        for point in summary["points"]:
            file = directory / point["rounds"][0]["export"]
            requests = json.loads(file.read_text(errors="replace"))["experiments"][0]["requests"]
            span = (max(r["response_timestamps"][-1] for r in requests) - min(r["timestamp"] for r in requests)) / 1e9
            stopped = json.loads(pauses.path(file).read_text())
            assert len(stopped) > 1
            assert point["all"]["seconds"] < span - turns.SECONDS / 2, "the pauses are not part of its time"
            pauses.path(file).unlink()
            raw = export.read(file).requests
            longest = max(gap for r in raw for gap in np.diff([r.sent, *r.arrivals]))
            assert longest > turns.SECONDS * 1e9 / 2, "but they were there"
    for one in (new, old):
        states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in one.pids()}
        assert states
        assert "T" not in states.values()
