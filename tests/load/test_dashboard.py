"""Every query of the Grafana dashboard, run by a real Prometheus that scrapes the real server under load."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from perf import dashboard, profile, watched
from perf.prometheus import MISSING
from perf.target import target

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]


def test_every_panel_has_data(tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip(MISSING)
    load = profile.load("shared-prefix").model_copy(update={"rounds": 1})
    wanted = dashboard.queries()
    # The negative control: a query for a metric that does not exist, and one that divides nothing by nothing.
    nobody, nothing = "sum(rate(tandem_requests_of_nobody_total[10s]))", "0 * tandem_running_sequences / 0"
    wrong = [
        dataclasses.replace(wanted[0], panel=panel, expression=expression)
        for panel, expression in (("no such metric", nobody), ("no number", nothing))
    ]
    with target(load, None, None) as served:
        found = watched.watch(load, served, tmp_path, wanted + wrong)
    missing = dashboard.without_data(found)
    assert [line.split(" / ")[0] for line in missing] == ["no such metric", "no number"], "\n".join(missing)
    dashboard.draw(found[: len(wanted)], tmp_path / "dashboard.png")
    assert (tmp_path / "dashboard.png").stat().st_size > 20_000
