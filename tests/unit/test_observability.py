"""Alert rules, scrape configuration and dashboard, as far as they can be checked without a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from perf import dashboard
from perf.prometheus import CONFIG, MISSING
from tandem.triton import __path__ as triton_package

ALERTS = CONFIG.with_name("alerts.yml")
TESTS = CONFIG.with_name("alerts_test.yml")
GRAFANA = CONFIG.with_name("grafana")
METRIC = re.compile(r"\btandem_\w+")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip(MISSING)
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)


def published() -> set[str]:
    """Names of all metrics, out of the source that publishes them: it can be imported only within Triton."""
    source = Path(next(iter(triton_package)), "metrics.py").read_text()
    plain = set(re.findall(r'\("(\w+)", "', source)) | set(re.findall(r'_family\("(\w+)"', source))
    counters = set(re.findall(r'^    "(\w+)": "', source, re.MULTILINE))
    renamed = {"propose_s": "propose_seconds", "forward_s": "forward_seconds", "sampling_s": "sampling_seconds"}
    histograms = {"ttft_seconds", "inter_token_latency_seconds", "step_rows"}
    names = plain | {f"{renamed.get(name, name)}_total" for name in counters}
    names |= {f"{name}_{series}" for name in histograms for series in ("bucket", "sum", "count")}
    return {f"tandem_{name}" for name in names}


def test_rules_and_configuration_are_valid() -> None:
    for what, file in (("rules", ALERTS), ("config", CONFIG)):
        done = promtool("check", what, str(file))
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_stay_silent_as_they_should() -> None:
    done = promtool("test", "rules", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", [rule["alert"] for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]])
def test_an_alert_that_never_fires_fails_its_test(tmp_path: Path, alert: str) -> None:
    """The negative control: with each rule's expression made false in turn, promtool's tests fail."""
    rules = yaml.safe_load(ALERTS.read_text())
    (rule,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == alert)
    rule["expr"] = f"({rule['expr']}) and vector(0) > 1"
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(rules))
    shutil.copy(TESTS, tmp_path)
    done = promtool("test", "rules", str(tmp_path / TESTS.name))
    assert done.returncode != 0
    assert alert in done.stdout + done.stderr


def test_every_alert_says_what_to_do() -> None:
    for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_only_metrics_that_are_published_are_asked_for() -> None:
    known = published()
    assert {"tandem_requests_total", "tandem_ttft_seconds_bucket", "tandem_kv_blocks_used"} <= known
    asked = {name for query in dashboard.queries() for name in METRIC.findall(query.expression)}
    asked |= {
        name
        for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
        for name in METRIC.findall(rule["expr"])
    }
    assert len(asked) > 15
    assert asked - known == set()


def test_dashboard_fits_its_provisioning() -> None:
    board = json.loads(dashboard.DASHBOARD.read_text())
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/tandem.yml").read_text())["providers"]
    assert provider["type"] == "file"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels), "panels lie on each other"
    for query in dashboard.queries():
        assert '{instance=~"$instance"' in query.expression, f"{query.panel} ignores the choice of servers"
        assert "$" not in query.resolved()
