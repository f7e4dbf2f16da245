"""Where the classifiers of a model repository have their engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def engine_directory(repository: Path, classifier: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of a classifier's engine: `TANDEM_<CLASSIFIER>_ENGINE` replaces `<classifier>/1/engine`."""
    return repository / classifier / "1" / environment.get(f"TANDEM_{classifier.upper()}_ENGINE", "engine")
