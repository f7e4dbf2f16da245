"""The Grafana dashboard's queries: run against a Prometheus, and drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from launcher.runtime import PROJECT
from perf.prometheus import Prometheus, Series

DASHBOARD = PROJECT / "observability" / "grafana" / "dashboards" / "tandem.json"
RATE_INTERVAL = "10s"  # Grafana's is at least four scrapes


@dataclass(frozen=True, slots=True)
class Query:
    """One line of one panel."""

    panel: str
    unit: str
    legend: str
    expression: str

    def resolved(self, interval: str = RATE_INTERVAL) -> str:
        """The expression with Grafana's variables filled in, for all servers."""
        return self.expression.replace("$__rate_interval", interval).replace("$instance", ".*")


def queries(path: Path = DASHBOARD) -> list[Query]:
    """All queries of the dashboard, panel by panel."""
    return [
        Query(panel["title"], panel["fieldConfig"]["defaults"]["unit"], target["legendFormat"], target["expr"])
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    ]


def answers(prometheus: Prometheus, asked: list[Query], start: float, end: float) -> list[tuple[Query, Series]]:
    """What each query gives over a time."""
    return [(query, prometheus.range(query.resolved(), start, end)) for query in asked]


def without_data(found: list[tuple[Query, Series]]) -> list[str]:
    """The queries that gave not one number."""
    return [
        f"{query.panel} / {query.legend}: {query.resolved()}"
        for query, series in found
        if not any(points for _, points in series)
    ]


def draw(found: list[tuple[Query, Series]], path: Path) -> None:
    """The panels as a picture, laid out as in Grafana."""
    import matplotlib as mpl

    mpl.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    titles = list(dict.fromkeys(query.panel for query, _ in found))
    start = min(points[0][0] for _, series in found for _, points in series if points)
    figure, axes = plt.subplots(-(-len(titles) // 2), 2, figsize=(12, 1.9 * len(titles) / 2 + 0.5), squeeze=False)
    for axis, title in zip(axes.flat, titles, strict=False):
        lines = 0
        for query, series in found:
            if query.panel != title:
                continue
            scale = 100 if query.unit == "percentunit" else 1000 if query.unit == "s" else 1
            for labels, points in series:
                if points:
                    name = query.legend
                    for key, value in labels.items():
                        name = name.replace("{{" + key + "}}", value)
                    axis.plot([at - start for at, _ in points], [v * scale for _, v in points], label=name, linewidth=1)
                    lines += 1
        unit = {"percentunit": ", %", "s": ", ms", "reqps": ", 1/s"}.get(query_unit(found, title), "")
        axis.set_title(title + unit, fontsize=9, loc="left")
        axis.set_ylim(0, None)
        axis.tick_params(labelsize=8)
        if lines:
            axis.legend(fontsize=7, ncols=2 if lines > 3 else 1)
    for axis in axes.flat[len(titles) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("seconds", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)


def query_unit(found: list[tuple[Query, Series]], title: str) -> str:
    """Unit of a panel."""
    return next(query.unit for query, _ in found if query.panel == title)
