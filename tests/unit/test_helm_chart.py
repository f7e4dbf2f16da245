"""The Helm chart: what helm makes of it, by the schemas of Kubernetes and by what the containers need."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.server import Options
from tandem.settings import TargetSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tandem"
TOOLS = ROOT / ".cache" / "test-tools"
KUBERNETES = "1.31"
OPERATORS = ("PodMonitor", "PrometheusRule")  # of the Prometheus operator, not of Kubernetes
Manifest = dict[str, Any]

EVERYTHING = {
    "gpu": {"enabled": True, "count": 2},
    "settings": {"kv_cache_mb": 2000000, "invariance": "off"},
    "adminSecret": "admin",
    "autoscaling": {"enabled": True, "max": 3},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "storage": {"className": "fast"},
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": EVERYTHING,
    "three, no router": {"replicas": 3, "router": {"enabled": False}},
}


def helm(*arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    program = str(TOOLS / "helm") if (TOOLS / "helm").exists() else shutil.which("helm")
    if program is None:
        pytest.skip("helm is missing: scripts/test_tools.sh fetches it")
    given = ["--values", "-"] if values else []
    return subprocess.run(
        [program, *arguments, *given], input=json.dumps(values), text=True, capture_output=True, timeout=60
    )


def manifests(values: dict[str, Any] | None = None) -> list[Manifest]:
    done = helm("template", "demo", str(CHART), "--namespace", "serving", values=values)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def one(kind: str, found: list[Manifest], name: str = "demo-tandem") -> Manifest:
    (manifest,) = [m for m in found if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return manifest


def pod(found: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = one("StatefulSet", found)["spec"]["template"]["spec"]
    return spec


def invalid(found: list[Manifest]) -> list[str]:
    """What the schemas of Kubernetes do not take."""
    if not (TOOLS / "kubernetes").is_dir():
        pytest.skip("the schemas of Kubernetes are missing: scripts/test_tools.sh fetches them")
    program = (
        "import json, sys, kubernetes_validate as k\n"
        "for manifest in json.load(sys.stdin):\n"
        "    try:\n"
        f"        k.validate(manifest, {KUBERNETES!r}, strict=True)\n"
        "    except k.ValidationError as error:\n"
        "        print(manifest['kind'], error.message.replace('\\n', ' '))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([manifest for manifest in found if manifest["kind"] not in OPERATORS]),
        env={**os.environ, "PYTHONPATH": str(TOOLS / "kubernetes")},
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_takes_what_helm_makes(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), values=VALUES[name])
    assert done.returncode == 0, done.stdout
    found = manifests(VALUES[name])
    assert invalid(found) == []
    kinds = [m["kind"] for m in found]
    assert ("HorizontalPodAutoscaler" in kinds, "PodMonitor" in kinds) == ((name == "everything"),) * 2
    assert ("Deployment" in kinds) == (name != "three, no router")


MISTAKES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a probe's field misspelt": lambda spec: spec["containers"][0]["readinessProbe"].update(periodSecond=1),
    "a number as text": lambda spec: spec.update(terminationGracePeriodSeconds="75"),
    "a port without number": lambda spec: spec["containers"][0]["ports"].append({"name": "more"}),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_control_a_mistake_is_found_by_the_schemas(name: str) -> None:
    found = manifests()
    MISTAKES[name](pod(found))
    assert len(invalid(found)) == 1


WRONG_VALUES = {
    "an unknown value": {"replica": 2},
    "text for a number": {"replicas": "two"},
    "half a CPU": {"resources": {"cpu": 0.5}},
    "an image without tag": {"router": {"image": "haproxy"}},
    "a setting that is neither text nor number": {"settings": {"prefix_cache": True}},
    "a setting in capitals": {"settings": {"KV_CACHE_MB": 1}},
    "a size without unit": {"storage": {"models": "4"}},
    "at least more than at most": {"autoscaling": {"enabled": True, "min": 5, "max": 2}},
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_values_are_refused(name: str) -> None:
    done = helm("template", "demo", str(CHART), values=WRONG_VALUES[name])
    assert done.returncode != 0
    assert next(iter(WRONG_VALUES[name])) in done.stderr


def containers(found: list[Manifest]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with its pod."""
    for manifest in found:
        spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            yield container, spec


def complaints(found: list[Manifest]) -> list[str]:
    """What breaks the promises that docker-compose.yml keeps too."""
    broken = []
    for container, spec in containers(found):
        context = container.get("securityContext", {})
        promises = {
            "its file system can be written": context.get("readOnlyRootFilesystem") is True,
            "it keeps capabilities": context.get("capabilities", {}).get("drop") == ["ALL"],
            "it may gain privileges": context.get("allowPrivilegeEscalation") is False,
            "it may run as root": spec.get("securityContext", {}).get("runAsNonRoot") is True,
            "it has the cluster's key": spec.get("automountServiceAccountToken") is False,
            "its memory has no limit": "memory" in container.get("resources", {}).get("limits", {}),
            "its image has no version": re.fullmatch(r".+:[0-9][^:]*", container["image"]) is not None,
        }
        broken += [f"{container['name']}: {what}" for what, kept in promises.items() if not kept]
    server = pod(found)["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    if not mounts["/var/lib/tandem/model_repository"].get("readOnly"):
        broken.append("server: it can write its models")
    if pod(found)["terminationGracePeriodSeconds"] <= 10 + Options().stop_seconds:
        broken.append("server: it is killed while it stops")
    return broken


@pytest.mark.parametrize("name", VALUES)
def test_every_container_keeps_the_promises(name: str) -> None:
    assert complaints(manifests(VALUES[name])) == []


def test_control_broken_promises_are_noticed() -> None:
    found = manifests()
    whole = copy.deepcopy(found)
    server = pod(found)["containers"][0]
    server["securityContext"]["readOnlyRootFilesystem"] = False
    server["image"] = "tandem-cpu:latest"
    server["volumeMounts"][0]["readOnly"] = False
    pod(found)["terminationGracePeriodSeconds"] = 30
    assert len(complaints(found)) == 4
    del pod(whole)["securityContext"]
    assert len(complaints(whole)) == 2  # of the build and the server


def test_the_image_is_that_of_compose() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {container["image"] for container in pod(manifests())["initContainers"]} == {f"tandem-cpu:{version}"}
    assert compose["services"]["tandem-cpu"]["image"] == f"tandem-cpu:{version}"


def test_volumes_are_where_the_entrypoint_looks() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    spec = pod(manifests())
    for container, service in ((spec["containers"][0], "tandem-cpu"), (spec["initContainers"][0], "build-cpu")):
        places = {volume.split(":")[1] for volume in compose[service]["volumes"]} | {"/tmp"}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} - {"/dev/shm"} == places
        assert container["args"] == compose[service]["command"]
        known = {volume["name"] for volume in spec["volumes"]} | {"models", "cache", "kv"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= known


def test_settings_arrive_as_the_server_reads_them() -> None:
    found = pod(manifests(EVERYTHING))["containers"][0]["env"]
    settings = TargetSettings.read({}, {entry["name"]: entry["value"] for entry in found if "value" in entry})
    assert (settings.kv_cache_mb, settings.invariance) == (2000000, "off")


def test_gpus_are_asked_for_where_they_are_used() -> None:
    for wanted, values in ((2, EVERYTHING), (None, {})):
        spec = pod(manifests(values))
        for container in (*spec["initContainers"], *spec["containers"]):
            assert container["resources"]["limits"].get("nvidia.com/gpu") == wanted


def router_config(values: dict[str, Any]) -> str:
    text: str = one("ConfigMap", manifests(values), "demo-tandem-router")["data"]["haproxy.cfg"]
    return text


@pytest.mark.parametrize(("values", "servers"), [({}, 1), ({"replicas": 2}, 2), (EVERYTHING, 3)])
def test_the_router_knows_every_server_there_may_be(values: dict[str, Any], servers: int) -> None:
    config = router_config(values)
    names = re.findall(r"^    server (\S+) (\S+):8001 ", config, re.MULTILINE)
    domain = "demo-tandem-servers.serving.svc.cluster.local"
    assert names == [(f"demo-tandem-{place}", f"demo-tandem-{place}.{domain}") for place in range(servers)]
    # Everything else is the file that the load test runs.
    lines = (ROOT / "scale_out" / "haproxy.cfg").read_text().splitlines()
    assert config.startswith("\n".join(line for line in lines if not line.startswith("    server ")))


def test_haproxy_takes_the_routers_configuration(tmp_path: Path) -> None:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("haproxy is missing: apt-get install haproxy")

    def check(config: str) -> int:
        (tmp_path / "haproxy.cfg").write_text(config)
        command = [program, "-c", "-f", str(tmp_path / "haproxy.cfg")]
        return subprocess.run(command, env={"TANDEM_LISTEN": ":8001"}, capture_output=True, timeout=60).returncode

    config = router_config(EVERYTHING)
    assert check(config) == 0
    assert check(config.replace("resolvers kube init-addr", "resolver kube init-addr")) != 0


def test_the_router_and_its_services_find_their_pods() -> None:
    found = manifests(EVERYTHING)
    pods = [one("StatefulSet", found), one("Deployment", found, "demo-tandem-router")]
    for manifest in found:
        selector = manifest["spec"].get("selector") if manifest["kind"] == "Service" else None
        if selector:
            chosen = [p for p in pods if selector.items() <= p["spec"]["template"]["metadata"]["labels"].items()]
            assert len(chosen) == 1, manifest["metadata"]["name"]
            ports = {port["name"] for port in chosen[0]["spec"]["template"]["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= ports
    assert one("StatefulSet", found)["spec"]["serviceName"] == "demo-tandem-servers"


def test_autoscaling_reads_a_metric_that_there_is() -> None:
    scaler = one("HorizontalPodAutoscaler", manifests(EVERYTHING))["spec"]
    name = scaler["metrics"][0]["pods"]["metric"]["name"].removeprefix("tandem_")
    assert f'("{name}"' in (ROOT / "tandem" / "triton" / "metrics.py").read_text()
    assert scaler["scaleTargetRef"]["name"] == "demo-tandem"
    assert "replicas" not in one("StatefulSet", manifests(EVERYTHING))["spec"], "helm would undo what the scaler does"


def test_alerts_are_those_of_the_repository() -> None:
    rules = one("PrometheusRule", manifests(EVERYTHING))
    assert rules["spec"] == yaml.safe_load((ROOT / "observability" / "alerts.yml").read_text())
    assert rules["metadata"]["labels"]["release"] == "prometheus"
