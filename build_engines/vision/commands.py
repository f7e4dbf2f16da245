"""The command `vision`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from build_engines.vision import models
from build_engines.vision.recipes import DEFAULT, RECIPES

COMMANDS = ("vision",)


def add_parsers(commands: Any) -> None:
    """Add the sub-command to those of `python -m build_engines`."""
    table = "\n".join(f"  {recipe.name:<24}{recipe.text}" for recipe in RECIPES.values())
    vision = commands.add_parser(
        "vision",
        help="build an image classifier: quantized, checked against full precision",
        description="Exports a classifier to ONNX, checks that the graph answers as torch does, and makes an engine "
        "by one of the recipes. An engine that is up to date is kept.",
        epilog=f"recipes:\n{table}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    vision.add_argument("model", help=f"{', '.join(models.NAMES)}, a Hugging Face directory or a hub id")
    vision.add_argument("--recipe", default=DEFAULT, metavar="NAME", help=f"see below (default: {DEFAULT})")
    vision.add_argument(
        "--output", type=Path, help="directory of the engine (default: model_repository/MODEL/1/engine)"
    )
    vision.add_argument("--force", action="store_true", help="build even if the engine is up to date")


def run(arguments: argparse.Namespace) -> None:
    """Run one of `COMMANDS`."""
    from build_engines.vision.build import build
    from build_engines.vision.recipes import recipe_named

    recipe = recipe_named(arguments.recipe)
    origin = models.origin_of(arguments.model)
    build(origin, recipe, arguments.output or models.output_of(origin.name), force=arguments.force)
