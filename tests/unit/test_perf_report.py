"""The report of a run: one file with everything in it, its numbers those of the summary and so of the raw exports."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from perf import agreement, baselines, compare, export, figures, report, scrape, session, timeline
from perf.errors import PerfError

FILE = Path(__file__).parent / "data" / "perf_export.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run of six rounds, all with the same real export, and metrics of ten seconds."""
    (tmp_path / "raw").mkdir()
    shutil.copy(FILE, tmp_path / "raw" / "one.json")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for second in range(10):
            values = {
                "tandem_step_rows_sum": 40.0 * second,
                "tandem_step_rows_count": 10.0 * second,
                "tandem_generated_tokens_total": 50.0 * second,
                "tandem_queued_sequences": 2.0,
                'tandem_accepted_tokens_total{position="1"}': 3.0 * second,
                'tandem_draft_tokens_total{position="1"}': 6.0 * second,
            }
            file.write(json.dumps([second * 1_000_000_000, values]) + "\n")
    return tmp_path


@pytest.fixture
def summary(directory: Path) -> dict[str, Any]:
    read = export.read(FILE)
    found = figures.figures(read.requests)
    entry = {
        "export": "raw/one.json",
        "figures": found,
        "yardstick": {"wall": 1.0, "cpu": 1.0},
        "perf_analyzer": {"requests_per_s": 5 / read.window_s, "window_s": read.window_s},
        "server": {"requests": 5, "tokens": found["tokens"]},
    }
    all_figures = figures.figures(read.requests * 6, 6 * found["seconds"])
    return {
        "profile": {
            "name": "mine", "description": "Words of <mine>.", "model": "generate", "requests": 5, "cancelling": None,
            "load": {"kind": "concurrency", "levels": [4]}, "inputs": {}, "server": {},
        },
        "started": "2026-01-01 00:00:00", "seconds": 60.0, "machine": "2 cores of a processor", "commit": "abc",
        "yardstick": "a network",
        "server": {"url": "127.0.0.1:1"}, "perf_analyzer": "/somewhere/perf_analyzer", "cancelling": {},
        "points": [{"level": 4, "all": all_figures, "rounds": [entry] * 6}],
    }  # fmt: skip


def test_report_is_one_file_with_the_figures(directory: Path, summary: dict[str, Any]) -> None:
    page = report.write(directory, summary, compare.compare(summary, summary), summary).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page), "everything is in the file"
    assert page.count('src="data:image/svg+xml;base64,') == 4
    for value in (summary["points"][0]["all"]["ttft_ms"]["p90"], summary["points"][0]["all"]["itl_ms"]["p99"]):
        assert f"<td>{value:.1f}</td>" in page
    assert "Words of &lt;mine&gt;." in page
    assert "Nothing moved beyond noise." in page
    assert "agree within 0.00 %" in page
    assert "2 cores of a processor" in page


def test_report_says_how_the_two_were_compared(directory: Path, summary: dict[str, Any]) -> None:
    apart = report.write(directory, summary, compare.compare(summary, summary), summary).read_text()
    assert "Mann-Whitney" in apart
    assert "6 rounds." in apart
    changes = compare.compare(summary, summary, in_turns=True)
    together = report.write(directory, summary, changes, summary, in_turns=True).read_text()
    assert "Wilcoxon" in together
    assert "6 rounds, in turns with this run&#39;s." in together


def test_report_without_baseline_and_metrics(directory: Path, summary: dict[str, Any]) -> None:
    (directory / "metrics.jsonl").unlink()
    page = report.write(directory, summary, notes=["too few of something"]).read_text()
    assert "make load-baseline PROFILE=mine" in page
    assert "No metrics were to be had." in page
    assert "too few of something" in page


def test_disagreement_with_the_servers_counters(directory: Path, summary: dict[str, Any]) -> None:
    assert agreement.disagreements(summary) == []
    summary["points"][0]["rounds"][0]["server"] = {"requests": 6, "tokens": 130}
    found = agreement.disagreements(summary)
    assert len(found) == 12
    assert "120 by perf_analyzer, 130 by the server's counters" in found[1]
    assert found[1] in report.write(directory, summary).read_text().replace("&#39;", "'")


def test_timeline_of_the_metrics(directory: Path) -> None:
    panels = {panel.title: panel.series for panel in timeline.panels(scrape.load(directory / "metrics.jsonl"))}
    assert panels["sequences in a step"] == [(second, 4.0) for second in range(1, 10)]
    assert panels["tokens/s"][0] == (1.0, 50.0)
    assert panels["drafts accepted, %"][-1] == (9.0, 50.0)
    assert "images in a batch" not in panels


def test_metrics_are_read_by_name_and_label() -> None:
    totals = scrape.parse(
        "# TYPE tandem_requests_total counter\n"
        'tandem_requests_total{outcome="success"} 3\ntandem_requests_total{outcome="error"} 2\n'
        "# TYPE tandem_step_rows_sum counter\ntandem_step_rows_sum 7\n"
        "# TYPE nv_inference_request_success counter\n"
        'nv_inference_request_success{model="classify",version="1"} 5\n'
    )
    assert scrape.total(totals, "tandem_requests_total") == 5
    assert scrape.total(totals, 'tandem_requests_total{outcome="success"') == 3
    assert scrape.total(totals, "tandem_step_rows_sum") == 7
    assert scrape.total(totals, 'nv_inference_request_success{model="classify"') == 5
    assert scrape.total(totals, "tandem_requests") == 0


def test_stored_baselines(directory: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "path", lambda name, runs=None: directory / f"{name}.json")
    assert session.compared(summary, None) == ([], None, [])
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "mine.json").write_text(json.dumps(summary))
    changes, baseline, notes = session.compared(summary, None)
    assert len(changes) == 4
    assert baseline == summary
    assert notes == []
    other = {**summary, "machine": "another"}
    assert "machine is 2 cores of a processor, this run's another" in session.compared(other, None)[2][0]
    with pytest.raises(PerfError, match="machine is"):
        session.compared(other, directory / "summary.json")
    with pytest.raises(PerfError, match=r"is no summary\.json"):
        baselines.read(directory / "nothing.json")
    assert baselines.store(directory / "summary.json", "x", directory).read_text() == json.dumps(summary)
