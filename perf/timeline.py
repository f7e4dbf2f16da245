"""What the server did during a run, out of the metrics that were scraped meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from perf.scrape import Totals, total

_FOUND, _QUERIED = "tandem_prefix_hit_tokens_total", "tandem_prefix_queried_tokens_total"
Scrapes = Sequence[tuple[int, Totals]]
Series = list[tuple[float, float]]  # (seconds since the first scrape, value)


@dataclass(frozen=True, slots=True)
class Panel:
    """One line of a plot."""

    title: str
    series: Series


def panels(scrapes: Scrapes) -> list[Panel]:
    """What there is data for."""
    ratio, gauge = _ratio(scrapes), _gauge(scrapes)
    found = [
        Panel("sequences in a step", ratio("tandem_step_rows_sum", "tandem_step_rows_count", 1)),
        Panel("queued sequences", gauge("tandem_queued_sequences")),
        Panel("tokens/s", _rate(scrapes, "tandem_generated_tokens_total")),
        Panel("KV blocks in use, %", _share(scrapes)),
        Panel("drafts accepted, %", ratio("tandem_accepted_tokens_total", "tandem_draft_tokens_total", 100)),
        Panel("prompt tokens found in the cache, %", ratio(_FOUND, _QUERIED, 100)),
        Panel("images in a batch", ratio("nv_inference_count", "nv_inference_exec_count", 1)),
    ]  # fmt: skip
    language = any(panel.series for panel in found[:1])
    return [panel for panel in found if panel.series and not (language and panel.title == "images in a batch")]


def _since(scrapes: Scrapes, at: int) -> float:
    return (at - scrapes[0][0]) / 1e9


def _gauge(scrapes: Scrapes) -> Callable[[str], Series]:
    return lambda name: [(_since(scrapes, at), total(values, name)) for at, values in scrapes if name in values]


def _ratio(scrapes: Scrapes) -> Callable[[str, str, float], Series]:
    """Increase of one counter over that of another between scrapes; nothing where the other did not move."""

    def made(above: str, below: str, scale: float) -> Series:
        found = []
        for (_, before), (at, after) in pairwise(scrapes):
            moved = total(after, below) - total(before, below)
            if moved > 0:
                found.append((_since(scrapes, at), scale * (total(after, above) - total(before, above)) / moved))
        return found

    return made


def _rate(scrapes: Scrapes, name: str) -> Series:
    return [
        (_since(scrapes, at), (total(after, name) - total(before, name)) / ((at - earlier) / 1e9))
        for (earlier, before), (at, after) in pairwise(scrapes)
        if name in after
    ]


def _share(scrapes: Scrapes) -> Series:
    used, of = "tandem_kv_blocks_used", "tandem_kv_blocks_total"
    return [(_since(scrapes, at), 100 * values[used] / values[of]) for at, values in scrapes if values.get(of)]
