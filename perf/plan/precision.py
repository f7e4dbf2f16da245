"""The setting `precision` of a plan: builds the engine that it names, and says where the server finds it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from build_engines import language
from build_engines.fetch import fetch
from build_engines.quality import CANDIDATES, REFERENCE
from build_engines.recipe import Recipe
from build_engines.source import resolve
from build_engines.vision import build, models
from build_engines.vision.recipes import recipe_named
from launcher.engines import NEEDS
from launcher.runtime import CACHE
from launcher.server import REPOSITORY
from perf.errors import PerfError
from perf.plan.spec import Configuration, Plan
from tandem.drafters import HEAD_DIRECTORY

ENGINES = CACHE / "engines" / "plan"
NAME = "precision"
LANGUAGE = {"int8": Recipe(), "bf16": CANDIDATES[0], "fp32": REFERENCE, "int4": CANDIDATES[-1]}


def settings(plan: Plan, configuration: Configuration) -> Configuration:
    """The configuration in settings of the server: the engine's path in place of the precision's name.

    Raises:
        BuildError: the engine cannot be built.
        PerfError: there is no such precision.
    """
    others = {name: value for name, value in configuration.items() if name != NAME}
    if NAME not in configuration:
        return others
    setting, directory = _engine(plan.model, str(configuration[NAME]))
    return {setting: str(directory), **others}


@cache  # a plan asks for it before every measurement
def _engine(model: str, precision: str) -> tuple[str, Path]:
    """The setting that says where an engine of this model is, and its directory; built if it is not up to date."""
    if model == "generate":
        return "target_engine", _language(precision)
    (classifier,) = NEEDS[model]
    directory = ENGINES / f"{classifier}-{precision}"
    build.build(models.origin_of(classifier), recipe_named(precision), directory)
    return f"{classifier}_engine", directory


def _language(precision: str) -> Path:
    """The default model's engine, with its drafter beside it."""
    if precision not in LANGUAGE:
        raise PerfError(f"precision {precision!r} is not known: choose one of {', '.join(LANGUAGE)}")
    directory = ENGINES / precision / "engine"
    language.build(resolve(str(fetch())), directory, LANGUAGE[precision])
    drafter = directory.parent / HEAD_DIRECTORY
    if not drafter.exists():
        drafter.symlink_to(REPOSITORY / "target" / "1" / HEAD_DIRECTORY, target_is_directory=True)
    return directory
