"""The report's plots, as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from perf.compare import Change
from perf.export import Request
from perf.figures import itl_ms, latency_ms, ttft_ms
from perf.plan.search import Operating
from perf.plan.spec import Plan
from perf.scrape import INTERVAL_S
from perf.timeline import Panel

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tandem"  # equal data gives an equal file
mpl.rcParams["axes.grid"] = True
mpl.rcParams["grid.alpha"] = 0.3
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: E402

_PAUSE_S = 4 * INTERVAL_S  # no line is drawn over it
_COLOURS = plt.get_cmap("viridis")


def _svg(figure: Any) -> bytes:
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    plt.close(figure)
    return data.getvalue()


def _finish(figure: Any) -> str:
    """A data URI, so that the report is one file."""
    return "data:image/svg+xml;base64," + base64.b64encode(_svg(figure)).decode()


def throughput_against_latency(summary: Mapping[str, Any]) -> str:
    """One point for each level, its rounds as small dots."""
    language = "tokens" in summary["points"][0]["all"]
    rate, unit = ("tokens_per_s", "tokens/s") if language else ("requests_per_s", "requests/s")
    shown = ["latency_ms", "ttft_ms"] if language else ["latency_ms"]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 3.6), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        points = [point["all"] for point in summary["points"]]
        for percent, style in (("p50", "o-"), ("p99", "s--")):
            axis.plot([p[rate] for p in points], [p[name][percent] for p in points], style, label=percent)
        for point in summary["points"]:
            rounds = [entry["figures"] for entry in point["rounds"]]
            axis.plot([r[rate] for r in rounds], [r[name]["p50"] for r in rounds], ".", color="grey", alpha=0.5)
            axis.annotate(
                f"{point['level']:g}", (point["all"][rate], point["all"][name]["p50"]), xytext=(4, 5),
                textcoords="offset points",
            )  # fmt: skip
        axis.set(
            xlabel=unit, ylabel=f"{'latency' if name == 'latency_ms' else 'TTFT'}, ms", xlim=(0, None), ylim=(0, None)
        )
        axis.legend()
    return _finish(figure)


def distributions(requests: Mapping[float, Sequence[Request]]) -> str:
    """Shares of the values that are at most x, for each level."""
    language = any(request.generated for measured in requests.values() for request in measured)
    shown = [("TTFT", ttft_ms), ("inter-token latency", itl_ms)] if language else [("latency", latency_ms)]
    figure, axes = plt.subplots(1, len(shown), figsize=(5.2 * len(shown), 3.6), squeeze=False)
    for axis, (title, values_of) in zip(axes[0], shown, strict=True):
        for index, (level, measured) in enumerate(requests.items()):
            values = np.sort(values_of(measured))
            values = values[values > 0]
            if len(values):
                share = np.arange(1, len(values) + 1) / len(values) * 100
                axis.step(
                    values, share, where="post", label=f"{level:g}", color=_COLOURS(index / max(1, len(requests) - 0.5))
                )
        axis.set(xscale="log", xlabel=f"{title}, ms", ylabel="% at most", ylim=(0, 100))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(title="level")
    return _finish(figure)


def timeline(panels: Sequence[Panel]) -> str:
    """The server's metrics over the run, one above the other."""
    figure, axes = plt.subplots(len(panels), 1, figsize=(10.4, 1.5 * len(panels) + 0.4), sharex=True, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        seconds, values = (np.array(side, dtype=float) for side in zip(*panel.series, strict=True))
        breaks = np.flatnonzero(np.diff(seconds) > _PAUSE_S) + 1
        axis.plot(
            np.insert(seconds, breaks, np.nan), np.insert(values, breaks, np.nan), ".-", linewidth=0.8, markersize=3
        )
        axis.set_title(panel.title, fontsize=9, loc="left")
        axis.set_ylim(0, None)
    axes[-1, 0].set_xlabel("seconds of the run")
    return _finish(figure)


def changes(found: Sequence[Change]) -> str:
    """The ratios to the baseline with their intervals."""
    figure, axis = plt.subplots(figsize=(10.4, 0.36 * len(found) + 1))
    colours = {"worse": "tab:red", "better": "tab:green", "": "tab:grey"}
    for place, change in enumerate(reversed(found)):
        colour = colours[change.flag]
        axis.plot([change.low, change.high], [place, place], color=colour)
        axis.plot(change.ratio, place, "o", color=colour)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [f"{c.figure.title}, level {c.level:g}" for c in reversed(found)])
    axis.set_xlabel("this run over the baseline, at equal speed of the machine, with 99 % interval")
    return _finish(figure)


def pareto(points: Sequence[Operating], front: Sequence[Operating], latency: str, plan: Plan) -> bytes:
    """Cost against a latency, one dot for each configuration and load, the best ones joined; an SVG file."""
    figure, axis = plt.subplots(figsize=(7, 4))
    for shown, style in ((points, "."), (front, "o-")):
        axis.plot(
            [point.p99_ms for point in shown], [point.cost for point in shown], style,
            color="grey" if style == "." else "tab:blue", label="measured" if style == "." else "Pareto front",
        )  # fmt: skip
    if latency in plan.targets:
        axis.axvline(plan.targets[latency], color="tab:red", label="target")
    axis.set(xscale="log", yscale="log", xlabel=latency, ylabel=f"cost per {plan.unit}")
    axis.legend()
    return _svg(figure)
