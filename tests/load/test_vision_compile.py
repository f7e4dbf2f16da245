"""The classifiers' graphs for TensorRT compile for real GPU architectures, on this machine without one.

`make test-compile` runs it; building and compiling take some minutes of CPU time, training ResNet-50 ten more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from build_engines.vision import build, models
from build_engines.vision.compile_check import ARCHITECTURES, compile_for
from build_engines.vision.recipes import RECIPES, recipe_named
from build_engines.vision.report import ENGINES
from build_engines.vision.tensorrt_engine import FILE

pytestmark = [pytest.mark.load, pytest.mark.timeout(3600)]
NAMES = [name for name, recipe in RECIPES.items() if recipe.gpu]


@pytest.fixture(scope="module", params=[(name, recipe) for name in models.NAMES for recipe in NAMES])
def graph(request: pytest.FixtureRequest) -> Path:
    """The graph of a recipe and model; kept in the cache of engines."""
    name, recipe = request.param
    output = ENGINES / f"{name}-{recipe}"
    build.build(models.origin_of(name), recipe_named(recipe), output)
    return output / FILE


def test_compiles_for_every_architecture(graph: Path) -> None:
    for architecture in ARCHITECTURES:
        assert compile_for(graph, architecture) > 1_000_000
