"""Settings that the next `make serve` uses: a file of NAME=value lines, written by hand or by `python -m perf plan`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from launcher.runtime import PROJECT

SETTINGS_FILE = PROJECT / "settings.env"
PREFIX = "TANDEM_"


class SettingsFileError(ValueError):
    """A line of the file is no setting; the message names it."""


def read_settings(path: Path) -> dict[str, str]:
    """The settings in a file; none if there is no such file.

    Raises:
        SettingsFileError: a line is neither empty, nor a comment, nor `TANDEM_<NAME>=value`.
    """
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().startswith(PREFIX):
            raise SettingsFileError(f"{path.name}, line {number}: {text!r} is not {PREFIX}<NAME>=value")
        found[name.strip()] = value.strip()
    return found


def write_settings(path: Path, settings: Mapping[str, str], origin: str) -> None:
    """Replace the file; `origin` says in its first line where the settings come from."""
    lines = [f"# from: {origin}", *(f"{name}={value}" for name, value in settings.items())]
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(path)
