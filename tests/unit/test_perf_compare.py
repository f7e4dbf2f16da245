"""The comparison of two runs: regressions are flagged, noise and a slower machine are not, misfits are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perf import compare
from perf.errors import PerfError


def run(seed: int, slower: float = 1.0, machine: float = 1.0, rounds: int = 12, noise: float = 0.04) -> dict[str, Any]:
    """A run whose server is `slower` than another on a machine that is `machine` times as fast, with noisy rounds."""
    rng = np.random.default_rng(seed)
    measured = []
    for _ in range(rounds):
        speed = machine * np.exp(rng.normal(0, 0.1))  # what the yardstick sees
        time = slower / speed * np.exp(rng.normal(0, noise))
        figures = {
            "tokens_per_s": 100 / time,
            "ttft_ms": {"p50": 200 * time},
            "tpot_ms": {"p50": 20 * time},
            "latency_ms": {"p50": 1000 * time},
            "cpu_ms_per_token": 30 * slower * np.exp(rng.normal(0, noise)),
        }
        measured.append({"figures": figures, "yardstick": {"wall": speed, "cpu": 1.0}})
    profile = dict.fromkeys(("load", "requests", "inputs", "cancelling", "server"), "same")
    return {
        "profile": {"model": "generate", **profile},
        "machine": "2 cores",
        "yardstick": "a network",
        "points": [{"level": 4.0, "rounds": measured}],
    }


def flags(changes: list[compare.Change]) -> dict[str, str]:
    return {change.figure.key: change.flag for change in changes if change.flag}


def test_a_regression_of_15_percent_is_flagged() -> None:
    found = compare.compare(run(1, slower=1.15), run(2))
    assert set(flags(found).values()) == {"worse"}
    assert len(flags(found)) == 5
    assert all(1.1 < change.ratio < 1.2 for change in found if not change.figure.higher_is_better)
    assert all(change.low < change.ratio < change.high for change in found)


def test_an_improvement_is_flagged_as_one() -> None:
    assert set(flags(compare.compare(run(1, slower=0.8), run(2))).values()) == {"better"}


def test_a_slower_machine_is_no_regression() -> None:
    """The negative control: without the yardstick the same runs are flagged."""
    slow, fast = run(1, machine=0.7), run(2)
    assert flags(compare.compare(slow, fast)) == {}
    for summary in (slow, fast):
        for entry in summary["points"][0]["rounds"]:
            entry["yardstick"]["wall"] = 1.0
    assert flags(compare.compare(slow, fast))


def test_reruns_raise_no_flag() -> None:
    flagged = [seed for seed in range(20) if flags(compare.compare(run(2 * seed), run(2 * seed + 1)))]
    assert flagged == []


def test_differences_below_the_threshold_are_not_flagged_however_certain() -> None:
    changes = compare.compare(run(1, slower=1.05, noise=0.001), run(2, noise=0.001))
    assert any(change.p < 0.01 for change in changes)
    assert flags(changes) == {}


def test_too_few_rounds_are_said_to_be_too_few() -> None:
    assert "too few" in compare.too_few_rounds(run(1, rounds=4), run(2, rounds=4))
    assert compare.too_few_rounds(run(1, rounds=6), run(2, rounds=6)) == ""
    assert flags(compare.compare(run(1, slower=2, rounds=3), run(2, rounds=3))) == {}


def test_a_machine_that_is_busy_with_others_judges_only_cpu_time() -> None:
    slow, fast = run(1, slower=1.15), run(2)
    for entry in slow["points"][0]["rounds"]:
        entry["granted"] = 0.05
    assert flags(compare.compare(slow, fast)) == {"cpu_ms_per_token": "worse"}
    assert "during this run the server got only 5%" in compare.busy(slow, fast)
    assert "during the baseline" in compare.busy(fast, slow)
    assert compare.busy(fast, fast) == ""


def in_turns(seed: int, slower: float = 1.0, rounds: int = 12) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two runs on a machine whose speed changes twofold from pair to pair, with nothing that says so."""
    pair = run(2 * seed, slower, rounds=rounds), run(2 * seed + 1, rounds=rounds)
    moods = np.exp(np.random.default_rng(seed).uniform(-0.35, 0.35, rounds))
    for summary in pair:
        for mood, entry in zip(moods, summary["points"][0]["rounds"], strict=True):
            speed = entry["yardstick"].pop("wall")
            entry["yardstick"] = {"wall": 1.0, "cpu": 1.0}
            figures = entry["figures"]
            figures["tokens_per_s"] *= mood / speed
            figures["cpu_ms_per_token"] /= mood
            for name in ("ttft_ms", "tpot_ms", "latency_ms"):
                figures[name]["p50"] *= speed / mood
    return pair


def test_runs_in_turns_are_compared_pair_by_pair() -> None:
    """The negative control: compared as two runs, the same rounds do not tell."""
    pair = in_turns(1, slower=1.15)
    found = compare.compare(*pair, in_turns=True)
    assert list(flags(found).values()) == ["worse"] * 5
    assert all(1.1 < change.ratio < 1.2 for change in found if not change.figure.higher_is_better)
    assert all(change.low < change.ratio < change.high for change in found)
    assert flags(compare.compare(*pair)) == {}


def test_the_same_in_turns_raises_no_flag() -> None:
    assert [seed for seed in range(20) if flags(compare.compare(*in_turns(seed), in_turns=True))] == []


def test_pairs_of_equal_rounds_are_no_change() -> None:
    same = run(1)
    assert {change.p for change in compare.compare(same, same, in_turns=True)} == {1.0}


def test_too_few_pairs_are_said_to_be_too_few() -> None:
    """Eight pairs: 2/256 for one figure, 5 times that for the first of five."""
    pair = in_turns(1, slower=2, rounds=7)
    assert len(compare.notes(*pair, in_turns=True)) == 1
    assert flags(compare.compare(*pair, in_turns=True)) == {}
    pair = in_turns(1, slower=2, rounds=8)
    assert compare.notes(*pair, in_turns=True) == []
    assert len(flags(compare.compare(*pair, in_turns=True))) == 5


def test_holm() -> None:
    """The example of Holm's procedure by hand: 0.01·4, max(0.04, 0.02·3), max(…, 0.03·2), 0.5."""
    assert compare.holm([0.02, 0.01, 0.5, 0.03]) == pytest.approx([0.06, 0.04, 0.5, 0.06])


def test_figures_that_only_one_side_has_are_left_out() -> None:
    baseline = run(2)
    for entry in baseline["points"][0]["rounds"]:
        del entry["figures"]["cpu_ms_per_token"]
    assert len(compare.compare(run(1), baseline)) == 4
    assert len(compare.compare(baseline, run(1))) == 4


@pytest.mark.parametrize("what", ["load", "inputs", "server", "machine", "yardstick"])
def test_another_measurement_is_no_baseline(what: str) -> None:
    other = run(2)
    (other if what in ("machine", "yardstick") else other["profile"])[what] = "different"
    with pytest.raises(PerfError, match=rf"{what} is different, this run's (same|2 cores|a network)"):
        compare.compare(run(1), other)


def test_another_file_is_no_baseline() -> None:
    with pytest.raises(PerfError, match=r"no summary\.json"):
        compare.compare(run(1), {"points": []})
