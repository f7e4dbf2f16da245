"""Which figures of a run differ from a baseline's beyond noise.

The rule, for each of `figures_of` at each level:

1. One value per round, the median request's or the whole round's. Rounds are the unit: requests within one share the
   moment of the machine, and would pretend to more certainty than there is.
2. The machine's influence is taken out. For CPU time that is the speed measured before and after each round
   (perf/yardstick.py); for times by the clock, where the run starts the server, that speed times the share of the cores
   that the server got while it wanted them (perf/cpu_time.py), else the same speed by the clock. A figure goes with
   that to some power between 0 and 1 (rates; the reverse for times), which is the slope that fits the rounds within
   both runs best, on logarithms. Where it explains nothing it changes nothing.
3. The change is the Hodges-Lehmann estimate: the median of the ratios of every round of the run to every round of the
   baseline. Its interval is the 99 % bootstrap over rounds, for the eye.
4. A figure is flagged if both hold: the two-sided exact Mann-Whitney test over the rounds, after Holm's correction for
   the number of figures, gives p < 0.05; and the change is at least `THRESHOLD`, because two runs differ by more than
   their rounds tell: by where memory lies, by other work on the machine.

Two servers that were measured in turns (perf/turns.py) are compared round by round instead: what the machine did
meanwhile happened to both, so nothing needs to be taken out of the ratio of a pair. Then the change is the
Hodges-Lehmann estimate of the pairs, its interval the bootstrap over pairs, and the test Wilcoxon's signed ranks,
exact; the rest is the same.

Where the server got less than `BUSY` of what it wanted, times by the clock tell of its neighbours and are not flagged.
Its CPU time for a token, which other work touches least, still is: it is the most sensitive figure in any case.

No figure has a distribution assumed. Six rounds on both sides are the fewest with which 10 figures can be flagged
at all (the smallest p is 2/924 then), nine where they are pairs (2/512): with fewer the comparison says so instead of
being silent. p90 and p99 are not compared: a round has too few requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from perf.errors import PerfError

Values = npt.NDArray[np.float64]
Rounds = Sequence[Mapping[str, Any]]
Estimate = tuple[float, float, float, float]  # ratio, its interval's ends, p before correction

ALPHA = 0.05
THRESHOLD = 0.075
BUSY = 0.1  # less has not been tried
_RESAMPLES = 2000
_COMPARED = ("model", "load", "requests", "inputs", "cancelling", "server")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure that is compared, `.`-separated in a round's figures."""

    key: str
    title: str
    higher_is_better: bool
    clock: str = "wall"  # by which of the machine's speeds it changes


LANGUAGE = (
    Figure("tokens_per_s", "tokens/s", True),
    Figure("ttft_ms.p50", "TTFT p50, ms", False),
    Figure("tpot_ms.p50", "time per output token p50, ms", False),
    Figure("latency_ms.p50", "request latency p50, ms", False),
    Figure("cpu_ms_per_token", "server's CPU time per token, ms", False, "cpu"),
)
OTHER = (
    Figure("requests_per_s", "requests/s", True),
    Figure("latency_ms.p50", "request latency p50, ms", False),
    Figure("cpu_ms_per_request", "server's CPU time per request, ms", False, "cpu"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One figure at one level.

    Attributes:
        before, after: medians over the rounds, as measured.
        ratio: after over before, at equal speed of the machine.
        low, high: 99 % bootstrap interval of the ratio.
        p: after Holm's correction.
        flag: "worse", "better", or "" where the change is within noise.
    """

    level: float
    figure: Figure
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p: float
    flag: str


def figures_of(summary: Mapping[str, Any]) -> tuple[Figure, ...]:
    """What is compared of a run."""
    figures = LANGUAGE if summary["profile"]["model"] == "generate" else OTHER
    found = summary["points"][0]["rounds"][0]["figures"]
    return tuple(figure for figure in figures if figure.key.split(".")[0] in found)


def check_comparable(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> None:
    """Raises:
    PerfError: the two did not measure the same, or not on the same machine; the message names both sides.
    """
    try:
        pairs = [(f"profile.{key}", run["profile"][key], baseline["profile"][key]) for key in _COMPARED]
        pairs += [(key, run[key], baseline.get(key)) for key in ("machine", "yardstick")]
    except (KeyError, TypeError) as error:
        raise PerfError(f"the baseline is no summary.json of a run: {error!r}") from None
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise PerfError(f"the baseline measured something else: its {name} is {theirs}, this run's {ours}")


def compare(
    run: Mapping[str, Any], baseline: Mapping[str, Any], threshold: float = THRESHOLD, *, in_turns: bool = False
) -> list[Change]:
    """All figures at all levels, in that order.

    Args:
        run, baseline: summaries.
        threshold: of what is flagged, as a share.
        in_turns: whether the two were measured together, each round of the one beside a round of the other.

    Raises:
        PerfError: see `check_comparable`.
    """
    check_comparable(run, baseline)
    estimate = _of_pairs if in_turns else _of_runs
    found = []
    for after, before in zip(run["points"], baseline["points"], strict=True):
        for figure in figures_of(run):
            if figure not in figures_of(baseline):
                continue
            rounds = before["rounds"], after["rounds"]
            medians = [float(np.median(_values(measured, figure))) for measured in rounds]
            found.append((after["level"], figure, *medians, *estimate(*rounds, figure)))
    adjusted = holm([entry[-1] for entry in found])
    told = ("cpu",) if busy(run, baseline) else ("cpu", "wall")
    return [
        Change(
            level,
            figure,
            old,
            new,
            ratio,
            low,
            high,
            p,
            _flag(figure, ratio, p, threshold) if figure.clock in told else "",
        )
        for (level, figure, old, new, ratio, low, high, _), p in zip(found, adjusted, strict=True)
    ]


def notes(run: Mapping[str, Any], baseline: Mapping[str, Any], *, in_turns: bool = False) -> list[str]:
    """What is to be said of the comparison, in sentences."""
    return [note for note in (too_few_rounds(run, baseline, in_turns=in_turns), busy(run, baseline)) if note]


def busy(run: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """A sentence if the machine was too busy with other things for figures by the clock, else nothing."""
    for name, summary in (("this run", run), ("the baseline", baseline)):
        shares = [entry.get("granted") for point in summary["points"] for entry in point["rounds"]]
        known = [share for share in shares if share is not None]
        if known and np.median(known) < BUSY:
            return (
                f"during {name} the server got only {np.median(known):.0%} of the CPU time that it wanted: "
                "figures by the clock are shown, and only CPU time is judged"
            )
    return ""


def too_few_rounds(run: Mapping[str, Any], baseline: Mapping[str, Any], *, in_turns: bool = False) -> str:
    """A sentence if no figure could be flagged with so few rounds, else nothing."""
    ours, theirs = (len(summary["points"][0]["rounds"]) for summary in (run, baseline))
    tests = len(run["points"]) * len(figures_of(run))
    orders = 2**ours if in_turns else comb(ours + theirs, ours)
    if 2 / orders * tests < ALPHA:
        return ""
    return (
        f"{ours} rounds against {theirs} are too few to tell a change of any of {tests} figures from noise: "
        "nothing can be flagged; give both more rounds"
    )


def _flag(figure: Figure, ratio: float, p: float, threshold: float) -> str:
    # Symmetric: a half is as far from 1 as the double.
    if p >= ALPHA or max(ratio, 1 / ratio) < 1 + threshold:
        return ""
    return "better" if (ratio > 1) == figure.higher_is_better else "worse"


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction for as many tests as there are values (Holm, Scand. J. Statist. 6, 1979)."""
    adjusted = [1.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, p[index] * (len(p) - rank)))
        adjusted[index] = largest
    return adjusted


def _values(rounds: Rounds, figure: Figure) -> Values:
    """A figure in each round."""
    measured = []
    for entry in rounds:
        value: Any = entry["figures"]
        for part in figure.key.split("."):
            value = value[part]
        measured.append(float(value))
    return np.array(measured)


def adjusted_logs(old: tuple[Values, Values], new: tuple[Values, Values], sign: int) -> tuple[Values, Values]:
    """Logarithms of two runs' values without the influence of the machine's speed, see rule 2.

    Args:
        old, new: values and speeds, float64 [rounds] each.
        sign: 1 for figures that grow with the speed, -1 for those that fall.
    """
    values = [np.log(run[0]) for run in (old, new)]
    speeds = [sign * np.log(run[1]) for run in (old, new)]
    around = [np.concatenate([run - run.mean() for run in runs]) for runs in (values, speeds)]
    spread = float(around[1] @ around[1])
    power = float(np.clip(around[0] @ around[1] / spread, 0, 1)) if spread > 0 else 0.0
    return values[0] - power * speeds[0], values[1] - power * speeds[1]


def _of_runs(old: Rounds, new: Rounds, figure: Figure) -> Estimate:
    """Of runs at different times, by the ratios of every round of the one to every round of the other."""
    from scipy.stats import mannwhitneyu

    before, after = (
        (_values(rounds, figure), np.array([entry["yardstick"][figure.clock] for entry in rounds]))
        for rounds in (old, new)
    )
    logs = adjusted_logs(before, after, 1 if figure.higher_is_better else -1)
    rng = np.random.default_rng(0)
    a, b = (values[rng.integers(len(values), size=(_RESAMPLES, len(values)))] for values in logs)
    resampled = np.median((b[:, :, None] - a[:, None, :]).reshape(_RESAMPLES, -1), axis=1)
    middle = np.median(logs[1][:, None] - logs[0][None, :])
    return *_ratios(middle, resampled), float(mannwhitneyu(*logs, method="exact").pvalue)


def _of_pairs(old: Rounds, new: Rounds, figure: Figure) -> Estimate:
    """Of rounds in turns, by the means of every two of the pairs' ratios."""
    from scipy.stats import wilcoxon

    logs = np.log(_values(new, figure)) - np.log(_values(old, figure))
    first, second = np.triu_indices(len(logs))
    resampled = logs[np.random.default_rng(0).integers(len(logs), size=(_RESAMPLES, len(logs)))]
    middles = np.median((resampled[:, first] + resampled[:, second]) / 2, axis=1)
    middle = np.median((logs[first] + logs[second]) / 2)
    p = float(wilcoxon(logs, method="exact").pvalue) if np.any(logs) else 1.0
    return *_ratios(middle, middles), p


def _ratios(middle: Any, resampled: Values) -> tuple[float, float, float]:
    low, high = np.percentile(resampled, [0.5, 99.5])
    return float(np.exp(middle)), float(np.exp(low)), float(np.exp(high))
