"""The page about speculation: speed-up, drafts, and where the time went, as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.counters import Counters
from benchmarks.spread import with_range
from benchmarks.step_times import StepTimes
from tandem.step_cost import StepCost

PLACES = (1, 2, 3, 4, 6, 8, 12, 16)  # places in a run of drafts that are shown
TIMED_STREAMS = (1, 16)  # cells whose time is broken down, where they were measured


@dataclass(frozen=True, slots=True)
class Run:
    """Some or all requests of a cell, once, with one drafter."""

    seconds: float
    tokens: int
    counters: Counters

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass(slots=True)
class Cell:
    """One workload at one number of streams: pairs of runs without and with drafters."""

    workload: str
    streams: int
    requests: int
    turns: list[tuple[Run, Run]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def speed_ups(self) -> list[float]:
        return [plain.seconds / drafted.seconds for plain, drafted in self.turns]

    def total(self, way: int) -> Run:
        """All turns of one way together."""
        runs = [pair[way] for pair in self.turns]
        counters = sum((run.counters for run in runs), Counters())
        return Run(sum(run.seconds for run in runs), sum(run.tokens for run in runs), counters)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table that can be read as it is; columns after the first ones are aligned right."""
    widths = [max(3, *(len(row[index]) for row in (head, *rows))) for index in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < text_columns else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def speed_table(cells: Sequence[Cell], drafter: str, times: StepTimes) -> str:
    # Without drafters the width stays, with them it changes from step to step.
    steady, changed = cost_of(times.steady), cost_of(times.changed)
    head = [
        "workload", "streams", "requests", "none, tokens/s", f"{drafter}, tokens/s", "speed-up", "tokens per step",
        "by T(width)",
    ]  # fmt: skip
    rows = []
    for cell in cells:
        rates = [with_range((pair[way].rate for pair in cell.turns), 1) for way in (0, 1)]
        plain, drafted = cell.total(0).counters, cell.total(1).counters
        expected = plain.steps * steady(round(plain.width)) / (drafted.steps * changed(round(drafted.width)))
        row = [cell.workload, str(cell.streams), str(cell.requests), *rates, with_range(cell.speed_ups(), 2)]
        rows.append([*row, f"{drafted.tokens_per_step:.2f}", f"{expected:.2f}"])
    return table(head, rows)


def draft_table(cells: Sequence[Cell]) -> str:
    head = ["workload", "streams", "verified", "accepted", "share", "of suffix", "of draft", "drafts per run"]
    rows = []
    for cell in cells:
        counters = cell.total(1).counters
        accepted, per_run = sum(counters.accepted), counters.drafted / counters.runs if counters.runs else 0.0
        share = f"{accepted / counters.drafted:.0%}" if counters.drafted else "–"
        counts = (counters.drafted, accepted, counters.suffix, counters.draft)
        verified, taken, suffix, draft = (f"{count:.0f}" for count in counts)
        rows.append([cell.workload, str(cell.streams), verified, taken, share, suffix, draft, f"{per_run:.1f}"])
    return table(head, rows)


def place_table(cells: Sequence[Cell]) -> str:
    rows = []
    for cell in cells:
        shares = cell.total(1).counters.acceptance()
        shown = [shares[place - 1] for place in PLACES]
        rows.append([cell.workload, str(cell.streams), *("–" if s is None else f"{s:.0%}" for s in shown)])
    return table(["workload", "streams", *map(str, PLACES)], rows)


def time_table(cells: Sequence[Cell], drafter: str) -> str:
    """Seconds of a turn by what they were spent on."""
    head = [
        "workload", "streams", "drafter", "steps", "rows", "width",
        "seconds", "propose", "forward", "sampling", "rest", "share of rest", "rest per step, ms",
    ]  # fmt: skip
    timed = [cell for cell in cells if cell.streams in TIMED_STREAMS] or list(cells)
    rows = []
    for cell in timed:
        for way, name in enumerate(("none", drafter)):
            run, turns = cell.total(way), len(cell.turns)
            found = run.counters
            inside = (found.propose_s, found.forward_s, found.sampling_s)
            rest = run.seconds - sum(inside)
            row = [cell.workload, str(cell.streams), name, f"{found.steps / turns:.0f}"]
            row += [f"{found.rows / found.steps:.1f}", f"{found.width:.1f}"]
            row += [f"{seconds / turns:.2f}" for seconds in (run.seconds, *inside, rest)]
            rows.append([*row, f"{rest / run.seconds:.1%}", f"{rest * 1e3 / found.steps:.2f}"])
    return table(head, rows)


def cost_table(times: StepTimes) -> str:
    """The fastest step of each width: on a shared machine the others tell of the neighbours."""
    single = min(times.steady[1])
    rows = []
    for width in times.steady:
        steady, changed = min(times.steady[width]), min(times.changed[width])
        median = statistics.median(times.steady[width])
        milliseconds = (f"{seconds * 1e3:.1f}" for seconds in (median, steady, changed))
        rows.append([str(width), *milliseconds, f"{steady / single:.2f}", f"{changed / single:.2f}"])
    head = ["width", "median, ms", "fastest, ms", "after another width, ms", "v", "v after another width"]
    return table(head, rows, text_columns=0)


def cost_of(times: Mapping[int, Sequence[float]]) -> StepCost:
    """The curve through the fastest step of each width."""
    return StepCost(list(times), [min(values) for values in times.values()])


def page(cells: Sequence[Cell], drafter: str, times: StepTimes, made: str) -> str:
    """The whole page; `made` tells by which command, when and on what machine."""
    differences = [f"{cell.workload}, {cell.streams} streams, {text}" for cell in cells for text in cell.differences]
    same = "Every request got the same token ids without and with drafters, in every turn."
    if differences:
        same = "**Token ids differ**, which must not be:\n\n" + "\n".join(f"* {text}" for text in differences)
    return f"""# Speculation: speed-up

{made}

{same}

## Speed-up

Closed loop through gRPC: as many clients as streams take requests from a queue until all are answered, prefill
included. In turns, each with a portion of the requests, first without drafters and then with them. Median
(smallest–largest) over the turns; the speed-up is that of the two runs of a turn. `mt-bench`: first turns, at most 128
tokens, greedy, and at temperature 0.8 with fixed seeds. `copying`: `benchmarks/copying.json`, tasks whose answer
repeats much of the prompt, chosen so that the default model really does repeat it, at most 160 tokens, greedy. `mixed`:
both in turns, greedy and sampled.

Tokens per step: of a sequence, in a step that chooses for it. By T(width): the speed-up if there were nothing but
steps of the mean width, at the cost measured below (with drafters that after another width); what is missing is
prefill, which drafts do not shorten, drafting and what the server adds.

{speed_table(cells, drafter, times)}

## Drafts

Sums over the turns. Below: the share of drafts accepted by their place in the run; a draft behind a rejected one
counts as rejected. Long runs are drafted only where much is expected of them.

{draft_table(cells)}

{place_table(cells)}

## Where the time goes

Seconds of one turn, mean over all. Rest is wall time less propose, forward and sampling, which the executor
counts: the coordinator, the call between the processes, text, sending, clients. Rows: sequences in a step. Width: rows
and drafts.

{time_table(cells, drafter)}

## What a wider step costs

T(m) of the bare engine in the same run, before the server started: one sequence, m new tokens, logits for each; v is
T(m) / T(1) of the fastest. Verifying k drafts of one stream costs v(k + 1), so n tokens per step bring n / v(k + 1).
The engine has graphs for these widths, as in the server; without, a step after one of another width costs more.

{cost_table(times)}
"""
