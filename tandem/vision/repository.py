"""The classifiers of a model repository: where their engines are, and which have been built."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tandem.manifest import FILE_NAME


def engine_directory(repository: Path, classifier: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of a classifier's engine: `TANDEM_<CLASSIFIER>_ENGINE` replaces `<classifier>/1/engine`."""
    return repository / classifier / "1" / environment.get(f"TANDEM_{classifier.upper()}_ENGINE", "engine")


def built_engines(repository: Path, classifiers: Iterable[str]) -> dict[str, Path]:
    """Directories of the engines that are there, by the name of the classifier."""
    directories = {name: engine_directory(repository, name) for name in classifiers}
    return {name: directory for name, directory in directories.items() if (directory / FILE_NAME).is_file()}
