"""Dockerfile and docker-compose.yml: what they promise, and that Docker's own tools take them."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose import ROOT, base_images, complaints

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
TOOLS = ROOT / ".cache" / "test-tools"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_service_keeps_the_promises():
    assert complaints(COMPOSE) == []


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(compose: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        place = compose["services"]
        for name in parents:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return apply


MUTATIONS = {
    "runs as root": change("tandem-cpu/user", "0:0"),
    "runs as root, or as whoever": change("grafana/user", None),
    "file system can be written": change("tandem-gpu/read_only", False),
    "keeps capabilities": change("prometheus/cap_drop", None),
    "may gain privileges": change("build-cpu/security_opt", []),
    "is not contained": change("tandem-cpu/network_mode", "host"),
    "can command Docker": change("prometheus/volumes", ["/var/run/docker.sock:/var/run/docker.sock:ro"]),
    "no limit of memory": change("build-gpu/deploy/resources/limits", {"cpus": "2", "pids": 9}),
    "no limit of pids": change("grafana/deploy/resources/limits", {"cpus": "2", "memory": "1g"}),
    "no health check": change("tandem-gpu/healthcheck", None),
    "started again": change("build-gpu/restart", "always"),
    "tag is not a version: latest": change("grafana/image", "grafana/grafana:latest"),
    "tag is not a version: none": change("prometheus/image", "prom/prometheus"),
    "open beyond loopback": change("tandem-cpu/ports", ["8000:8000"]),
    "can write its models": change("tandem-gpu/volumes", ["models:/var/lib/tandem/model_repository"]),
    "alerts.yml can be written": change(
        "prometheus/volumes", [{"type": "bind", "source": "./observability/alerts.yml", "target": "/x"}]
    ),
    "does not wait for its engines": change("tandem-cpu/depends_on/build-cpu/condition", "service_started"),
    "engines are built in another image": change("build-gpu/image", "tandem-cpu:0.1.0"),
    "another platform": change("tandem-gpu/build", {"context": ".", "args": {"PLATFORM": "cpu"}}),
    "GPUs": change("tandem-gpu/deploy/resources/reservations", {}),
}


@pytest.mark.parametrize("complaint", MUTATIONS)
def test_a_broken_promise_is_seen(complaint):
    broken = copy.deepcopy(COMPOSE)
    MUTATIONS[complaint](broken)
    assert any(complaint in text for text in complaints(broken)), complaints(broken)


def test_images_are_of_this_version():
    version = PROJECT["project"]["version"]
    images = {service["image"] for name, service in COMPOSE["services"].items() if "-" in name}
    assert images == {f"tandem-cpu:{version}", f"tandem-gpu:{version}"}


def test_base_images_are_pinned():
    python, triton = base_images(DOCKERFILE)
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-bookworm", python)
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", triton)


def test_base_images_that_are_not_pinned_are_seen():
    assert base_images("FROM debian\nFROM debian AS x\nFROM x") == ["debian", "debian"]
    assert base_images("FROM a:1 AS a-x\nARG P=x\nFROM a-${P}") == ["a:1"]
    assert base_images("ARG TAG=latest\nFROM a:${TAG} AS b\nFROM b") == ["a:latest"]


def test_the_image_does_not_end_as_root():
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users[-1] == COMPOSE["services"]["tandem-cpu"]["user"] == "10001:10001"


def copied() -> set[str]:
    """Files and folders that the Dockerfile copies."""
    lines = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    return {name for line in lines for name in line.split()}


def test_every_package_is_in_the_image():
    packages = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert packages - copied() == set(), "copy it in the Dockerfile, and let .dockerignore pass it"


def test_what_is_copied_passes_the_ignore_file():
    ignore = (ROOT / ".dockerignore").read_text().split("\n")
    passed = {line[1:] for line in ignore if line.startswith("!")}
    assert copied() == passed
    assert all((ROOT / name).exists() for name in passed)
    # Nothing that was built here; the order matters, so these must come after what lets the folder pass.
    for line in ("model_repository/*/1/engine", "model_repository/*/1/drafter"):
        assert ignore.index(line) > ignore.index("!model_repository")


def test_images_are_set_up_by_the_scripts_of_make():
    makefile = (ROOT / "Makefile").read_text()
    entrypoint = (ROOT / "docker" / "entrypoint.sh").read_text()
    assert "scripts/setup.sh" in makefile
    assert "scripts/setup.sh" in DOCKERFILE
    assert "scripts/engines.sh" in makefile
    assert "/scripts/engines.sh" in entrypoint
    assert "-m launcher serve" in makefile
    assert "-m launcher serve" in entrypoint


def bind_sources() -> set[str]:
    volumes = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", [])]
    return {volume["source"] for volume in volumes if isinstance(volume, dict)}


def test_mounted_files_are_there():
    sources = bind_sources()
    assert "./docker/prometheus.yml" in sources
    assert {source for source in sources if not (ROOT / source).exists()} == set()


def test_prometheus_scrapes_the_server_by_its_name():
    scrape = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())
    (target,) = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    name, port = target.split(":")
    for kind in ("cpu", "gpu"):
        service = COMPOSE["services"][f"tandem-{kind}"]
        assert name in service["networks"]["default"]["aliases"]
        assert any(mapping.endswith(f":{port}") for mapping in service["ports"])
    assert {f"./observability/{file}" for file in scrape["rule_files"]} <= bind_sources()


def test_example_environment_names_what_compose_takes():
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / "docker" / "example.env").read_text()
    taken = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE)) == {*taken, "COMPOSE_PROFILES"}
    assert {name: value for name, value in taken.items() if value} == dict(
        re.findall(r"^(\w+)=(\S+)", example, re.MULTILINE)
    )


# ---------------------------------------------------------------- Docker's own tools


def compose_command() -> list[str]:
    if (TOOLS / "docker-compose").is_file():
        return [str(TOOLS / "docker-compose")]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    pytest.skip("docker compose is missing: scripts/test_tools.sh fetches it")


def config(profile: str, file: Path = ROOT / "docker-compose.yml", **env: str) -> subprocess.CompletedProcess[str]:
    command = [*compose_command(), "--file", str(file), "--env-file", os.devnull, "--profile", profile]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **env}
    return subprocess.run(
        [*command, "config", "--format", "json"], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_takes_every_profile(profile):
    result = config(profile, TANDEM_BIND="0.0.0.0", HTTP_PORT="9000", TANDEM_CPUS="4", TANDEM_ADMIN_KEY="k" * 16)
    assert result.returncode == 0, result.stderr
    services = json.loads(result.stdout)["services"]
    assert set(services) == {f"build-{profile}", f"tandem-{profile}", "prometheus", "grafana"}
    server = services[f"tandem-{profile}"]
    assert (server["ports"][0]["host_ip"], server["ports"][0]["published"]) == ("0.0.0.0", "9000")
    assert server["environment"]["TANDEM_THREADS"] == "4"
    assert server["environment"]["TANDEM_ADMIN_KEY"] == "k" * 16
    models = next(volume for volume in server["volumes"] if volume["source"] == "models")
    assert models["read_only"]
    assert server["deploy"]["resources"]["limits"]["memory"] == str(8 << 30)


def test_without_a_profile_nothing_starts():
    result = config("nothing")
    assert result.returncode == 0, result.stderr
    assert not json.loads(result.stdout).get("services")


def test_compose_refuses_a_mistake(tmp_path):
    broken = tmp_path / "docker-compose.yml"
    broken.write_text((ROOT / "docker-compose.yml").read_text().replace("cap_drop:", "drop_caps:"))
    result = config("cpu", broken)
    assert result.returncode != 0
    assert "drop_caps" in result.stderr


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("hadolint", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        pytest.skip("hadolint is missing: scripts/test_tools.sh fetches it")
    return subprocess.run([tool, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say():
    result = hadolint(DOCKERFILE)
    assert (result.returncode, result.stdout) == (0, "")


def test_hadolint_sees_an_image_without_a_tag():
    assert "DL3006" in hadolint(DOCKERFILE.replace("python:${PYTHON_TAG}", "python")).stdout
