"""Figures of a real export (five requests of a smoke run, the file that perf_analyzer wrote) and of made-up times."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import export, figures
from perf.errors import PerfError
from perf.export import Request, UnfinishedExportError

FILE = Path(__file__).parent / "data" / "perf_export.json"
MS = 1_000_000


def raw() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text())["experiments"][0]["requests"]
    return found


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    data = json.loads(FILE.read_text())
    change(data["experiments"][0])
    path = tmp_path / "export.json"
    path.write_text(json.dumps(data))
    return path


def test_counts_are_those_of_the_export() -> None:
    read = export.read(FILE)
    assert [request.generated for request in read.requests] == [24] * 5
    last = sorted(raw(), key=lambda request: request["timestamp"])
    assert [r.prompt_tokens for r in read.requests] == [r["response_outputs"][-1]["prompt_tokens"] for r in last]
    assert all(0 <= request.cached_tokens <= request.prompt_tokens for request in read.requests)
    assert all(request.accepted <= request.drafted for request in read.requests)


def test_percentiles_are_values_of_the_raw_export() -> None:
    """Computed here another way: from the file, request by request, with sorted lists."""
    ttft, gaps, latency, itl = [], [], [], []
    for request in raw():
        times = [request["timestamp"], *request["response_timestamps"]]
        ttft.append((times[1] - times[0]) / MS)
        latency.append((times[-1] - times[0]) / MS)
        gaps += [(b - a) / MS for a, b in pairwise(times[1:])]
        for number, output in enumerate(request["response_outputs"]):
            ids = output["output_ids"]
            count = len(ids) if isinstance(ids, list) else 1
            if number == 0:
                itl += [0.0] * (count - 1)
            else:
                itl += [(times[number + 1] - times[number]) / MS / count] * count
    found = figures.figures(export.read(FILE).requests)
    for name, values in {"ttft_ms": ttft, "gap_ms": gaps, "latency_ms": latency, "itl_ms": itl}.items():
        assert found[name]["n"] == len(values)
        for percent in (50, 90, 99):
            rank = -(-len(values) * percent // 100)
            assert found[name][f"p{percent}"] == sorted(values)[rank - 1], (name, percent)


def test_a_requests_inter_token_latencies_add_up_to_its_time() -> None:
    for request in export.read(FILE).requests:
        values = figures.itl_ms([request])
        assert len(values) == request.generated - 1
        assert values.sum() == pytest.approx((request.arrivals[-1] - request.arrivals[0]) / MS)


def test_tokens_that_come_together() -> None:
    """1 token after 100 ms, 3 more at 160, an empty last response at 170."""
    request = Request(sent=0, arrivals=(100 * MS, 160 * MS, 170 * MS), tokens=(1, 3, 0))
    assert figures.ttft_ms([request]).tolist() == [100]
    assert figures.itl_ms([request]).tolist() == [20, 20, 20]
    assert figures.gap_ms([request]).tolist() == [60, 10]
    assert figures.tpot_ms([request]).tolist() == [20]
    assert figures.stream_tokens_per_s([request]).tolist() == [50]
    assert figures.latency_ms([request]).tolist() == [170]


def test_first_response_with_several_tokens() -> None:
    request = Request(sent=0, arrivals=(100 * MS, 130 * MS), tokens=(3, 1))
    assert figures.itl_ms([request]).tolist() == [0, 0, 30]


def test_rates_are_of_all_requests_together() -> None:
    requests = [Request(0, (500 * MS,), (4,)), Request(100 * MS, (300 * MS, 2000 * MS), (1, 5))]
    found = figures.figures(requests)
    assert found["seconds"] == 2.0
    assert found["tokens_per_s"] == 5.0
    assert found["requests_per_s"] == 1.0


def test_requests_of_other_models_have_only_latencies() -> None:
    found = figures.figures([Request(0, (5 * MS,)), Request(0, (7 * MS,))])
    assert found["latency_ms"]["p50"] == 5
    assert "tokens_per_s" not in found
    assert "ttft_ms" not in found


def test_percentiles_are_measured_values() -> None:
    values = np.arange(1.0, 101.0)
    assert [figures.percentile(values, p) for p in (50, 90, 99)] == [50, 90, 99]
    assert figures.percentile(np.array([1.0, 2.0]), 99) == 2


def test_empty_list_of_ids_in_the_last_response(tmp_path: Path) -> None:
    """perf_analyzer writes no list there: the count of generated tokens tells that it brought none."""

    def change(experiment: dict[str, Any]) -> None:
        last = {**experiment["requests"][0]["response_outputs"][-1], "output_ids": 0}
        experiment["requests"][0]["response_outputs"].append(last)
        experiment["requests"][0]["response_timestamps"].append(
            experiment["requests"][0]["response_timestamps"][-1] + 5
        )

    assert {request.generated for request in export.read(changed(tmp_path, change)).requests} == {24}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["requests"][0]["response_outputs"][-1].update(generated_tokens=20), "24 tokens, and 20"),
        (lambda e: e["requests"][0]["response_outputs"][-1].update(finish_reason=""), "it was cut off"),
        (lambda e: e["requests"][0]["response_timestamps"].pop(), "responses with"),
        (lambda e: e["requests"].clear(), "holds no requests"),
        (lambda e: e.pop("window_boundaries"), "window_boundaries"),
    ],
)
def test_exports_that_contradict_themselves(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(PerfError, match=message):
        export.read(changed(tmp_path, change))


def test_empty_export_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.json").touch()
    with pytest.raises(UnfinishedExportError, match="wrote nothing of its export"):
        export.read(tmp_path / "empty.json")


def test_export_that_is_cut_off_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    path.write_bytes(FILE.read_bytes()[:5000])
    with pytest.raises(UnfinishedExportError, match="only a part of its export"):
        export.read(path)


def test_file_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(PerfError, match="is no export"):
        export.read(tmp_path / "nothing.json")


def test_answers_without_tokens_have_times_as_a_whole_alone() -> None:
    """Those of images."""
    requests = [Request(0, (20 * MS,)), Request(5 * MS, (35 * MS,))]
    assert figures.latency_ms(requests).tolist() == [20.0, 30.0]
    assert figures.ttft_ms(requests).size == figures.itl_ms(requests).size == 0
