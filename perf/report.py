"""One HTML file for a run, with everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from perf import agreement, compare, export, plots, scrape, timeline
from perf.compare import Change

TEMPLATE = Path(__file__).with_name("report.html")
_LEVELS = {"concurrency": "streams", "poisson": "requests/s sent", "bursts": "requests in a burst"}
_LANGUAGE = [("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("latency", "latency_ms")]


def write(
    directory: Path,
    summary: Mapping[str, Any],
    changes: Sequence[Change] = (),
    baseline: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    *,
    in_turns: bool = False,
) -> Path:
    """Write `report.html` into a run's directory, from its summary, raw exports and scraped metrics.

    Args:
        directory: of the run.
        summary: its summary.json.
        changes: against the baseline, if there is one.
        baseline: the summary of that.
        notes: shown at the top, with what the report itself finds amiss.
        in_turns: whether the baseline was measured in turns with the run.
    """
    requests = {
        point["level"]: [
            request for entry in point["rounds"] for request in export.read(directory / entry["export"]).requests
        ]
        for point in summary["points"]
    }
    language = "tokens" in summary["points"][0]["all"]
    panels = timeline.panels(scrape.load(directory / "metrics.jsonl"))
    made = {
        "throughput": plots.throughput_against_latency(summary),
        "distributions": plots.distributions(requests),
        "timeline": plots.timeline(panels) if panels else "",
        "changes": plots.changes(changes) if changes else "",
    }
    differing = agreement.disagreements(summary)
    pairs = [] if summary["cancelling"] else agreement.differences(summary)
    largest = max((abs(a - b) / max(abs(a), abs(b), 1e-9) for _, a, b in pairs), default=None)
    configuration = {key: summary[key] for key in ("profile", "server", "perf_analyzer")}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        summary=summary,
        language=language,
        level_name=_LEVELS[summary["profile"]["load"]["kind"]],
        shown=[{"title": title, "key": key} for title, key in (_LANGUAGE if language else _LANGUAGE[-1:])],
        plots=made,
        warnings=[*notes, *differing],
        agreement=max(largest, 1e-6) if largest is not None and not differing else None,
        changes=changes,
        baseline=baseline,
        in_turns=in_turns,
        threshold=compare.THRESHOLD,
        verdict=verdict(changes),
        configuration=yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True, width=120),
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def verdict(changes: Sequence[Change]) -> str:
    """The comparison in a sentence."""
    worse, better = ([c for c in changes if c.flag == flag] for flag in ("worse", "better"))
    if not worse and not better:
        return "Nothing moved beyond noise."
    return f"Beyond noise, {len(worse)} figures got worse and {len(better)} better."
