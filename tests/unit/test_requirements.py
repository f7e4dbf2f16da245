"""requirements.lock on every Python that the project supports, whatever the one it was made with."""

from __future__ import annotations

from importlib.metadata import distributions

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launcher.runtime import PROJECT

PYTHONS = ("3.11.0", "3.11.14", "3.12.0", "3.12.12")


def environment(python: str) -> dict[str, str]:
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_full_version": python,
        "python_version": ".".join(python.split(".")[:2]),
        "extra": "",
    }


def locked(python: str) -> set[str]:
    """Names of the packages that pip installs there."""
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate(environment(python))}


@pytest.mark.parametrize("python", PYTHONS)
def test_what_depends_on_the_version_of_python_is_locked_for_it(python: str) -> None:
    """pip is told not to look at what the packages ask for."""
    missing = []
    names = locked(python)  # setuptools brings packages of its own, which are none of ours
    for package in (p for p in distributions() if canonicalize_name(p.metadata["Name"]) in names):
        for requirement in map(Requirement, package.requires or ()):
            marker = requirement.marker
            if marker is None or "python" not in str(marker) or not marker.evaluate(environment(python)):
                continue
            if canonicalize_name(requirement.name) not in names:
                missing.append(f"{package.metadata['Name']}: {requirement}")
    assert missing == []
