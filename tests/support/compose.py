"""What docker-compose.yml promises of every service, as checks of the parsed file that name what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = re.compile(r"(build|tandem)-(cpu|gpu)")
Service = dict[str, Any]


def complaints(compose: dict[str, Any]) -> list[str]:
    """Every promise that a service breaks, as `service: what`."""
    return [
        f"{name}: {text}"
        for name, service in compose["services"].items()
        for text in (*_safety(service), *_limits(service), *_health(name, service), *_image(service), *_ports(service))
    ] + [*_volumes(compose), *_dependencies(compose)]


def _safety(service: Service) -> Iterator[str]:
    if re.fullmatch(r"(0|root)?(:.*)?", str(service.get("user", ""))):
        yield "runs as root, or as whoever the image says"
    if service.get("read_only") is not True:
        yield "its file system can be written"
    if service.get("cap_drop") != ["ALL"]:
        yield "keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "may gain privileges"
    if service.get("privileged") or service.get("network_mode") == "host" or service.get("pid") == "host":
        yield "is not contained"
    if any("docker.sock" in str(volume) for volume in service.get("volumes", [])):
        yield "can command Docker"


def _limits(service: Service) -> Iterator[str]:
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    for name in ("cpus", "memory", "pids"):
        if not limits.get(name):
            yield f"no limit of {name}"


def _health(name: str, service: Service) -> Iterator[str]:
    if name.startswith("build-"):
        if service.get("restart") != "no":
            yield "a one-shot service is started again"
    elif not service.get("healthcheck", {}).get("test"):
        yield "no health check"


def _image(service: Service) -> Iterator[str]:
    tag = str(service.get("image", "")).partition(":")[2]
    if not re.search(r"\d+\.\d+", tag):
        yield f"the image's tag is not a version: {tag or 'none'}"


def _ports(service: Service) -> Iterator[str]:
    for port in service.get("ports", []):
        if not str(port).startswith("${TANDEM_BIND:-127.0.0.1}:"):
            yield f"port {port} is open beyond loopback"


def _volumes(compose: dict[str, Any]) -> Iterator[str]:
    """Of our services only the build writes models; everything else that is mounted as a file is for reading."""
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                if not volume.get("read_only"):
                    yield f"{name}: {volume['source']} can be written"
            elif volume.startswith("models:") and name.startswith("tandem-") and not volume.endswith(":ro"):
                yield f"{name}: the server can write its models"


def _dependencies(compose: dict[str, Any]) -> Iterator[str]:
    services = compose["services"]
    for kind in ("cpu", "gpu"):
        server, build = services.get(f"tandem-{kind}", {}), services.get(f"build-{kind}", {})
        condition = server.get("depends_on", {}).get(f"build-{kind}", {}).get("condition")
        if condition != "service_completed_successfully":
            yield f"tandem-{kind}: does not wait for its engines"
        if server.get("image") != build.get("image") or server.get("build") != build.get("build"):
            yield f"tandem-{kind}: engines are built in another image"
        if server.get("build", {}).get("args", {}).get("PLATFORM") != kind or server.get("profiles") != [kind]:
            yield f"tandem-{kind}: is of another platform or profile"
        devices = str(server.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", ""))
        if ("nvidia" in devices) != (kind == "gpu"):
            yield f"tandem-{kind}: GPUs"


def base_images(dockerfile: str) -> list[str]:
    """The images that a Dockerfile starts from, with the defaults of its arguments put in; stages left out."""
    defaults = dict(re.findall(r"^ARG (\w+)=(\S*)", dockerfile, re.MULTILINE))
    images, stages = [], set()
    for image, stage in re.findall(r"^FROM (\S+)(?: AS (\S+))?", dockerfile, re.MULTILINE):
        full = re.sub(r"\$\{(\w+)\}", lambda name: defaults.get(name[1], ""), image)
        if full not in stages:
            images.append(full)
        stages.add(stage)
    return images
