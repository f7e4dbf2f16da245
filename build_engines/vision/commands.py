"""The command `vision`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.progress import stage
from build_engines.vision import models
from build_engines.vision.recipes import LEAST_AGREEMENT, RECIPES

COMMANDS = ("vision", "vision-report")


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
    vision.add_argument(
        "model",
        help=f"{', '.join(models.NAMES)}, a Hugging Face directory or a hub id; with @PIXELS for another picture size",
    )
    vision.add_argument("--recipe", metavar="NAME", help="see below (default: that of the model, INT8)")
    vision.add_argument(
        "--output", type=Path, help="directory of the engine (default: model_repository/MODEL/1/engine)"
    )
    vision.add_argument("--name", help="name of the model (default: from the source)")
    vision.add_argument(
        "--compile", nargs="+", metavar="ARCHITECTURE", default=[],
        help="of a recipe for a GPU: check that it compiles for these compute capabilities, such as 8.6 8.9 12.0, with "
        "TensorRT for RTX, which needs no GPU",
    )  # fmt: skip
    vision.add_argument(
        "--least-agreement", type=float, default=LEAST_AGREEMENT, metavar="SHARE",
        help="fail if the engine chooses the class of full precision on fewer of a few pictures "
        f"(default: {LEAST_AGREEMENT})",
    )  # fmt: skip
    vision.add_argument("--force", action="store_true", help="build even if the engine is up to date")

    report = commands.add_parser(
        "vision-report",
        help="measure size, memory, speed and accuracy of all recipes, and write docs/vision.md",
        description="Builds every recipe that runs on this machine, measures it, and names the fastest that keeps the "
        "accuracy. Takes about an hour on two cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    report.add_argument("models", nargs="*", default=list(models.NAMES), help="models, as for `vision`")
    report.add_argument("--output", type=Path, default=Path("docs/vision.md"), help="Markdown page to write")
    report.add_argument("--images", type=int, help="validation pictures of each model (default: all, 796 and 1000)")
    report.add_argument("--rounds", type=int, default=5, help="turns each engine gets in the speed part")
    report.add_argument("--keep", type=float, default=0.99, help="share of the top-1 of full precision to keep")


def run(arguments: argparse.Namespace) -> None:
    """Run one of `COMMANDS`."""
    if arguments.command == "vision-report":
        _report(arguments)
    else:
        _build(arguments)


def _report(arguments: argparse.Namespace) -> None:
    from build_engines.vision.report import run as report

    if arguments.rounds < 1 or not 0 < arguments.keep <= 1:
        raise BuildError(f"--rounds {arguments.rounds} must be at least 1, --keep {arguments.keep} between 0 and 1")
    command = ["python", "-m", "build_engines", "vision-report", *arguments.models, "--rounds", str(arguments.rounds)]
    command += ["--images", str(arguments.images)] if arguments.images else []
    report(arguments.models, arguments.output, arguments.images, arguments.rounds, arguments.keep, shlex.join(command))


def _build(arguments: argparse.Namespace) -> None:
    from build_engines.vision.build import build
    from build_engines.vision.recipes import recipe_named

    if arguments.recipe:
        recipe_named(arguments.recipe)  # a wrong name is told before anything is downloaded
    origin = models.origin_of(arguments.model)
    recipe = recipe_named(arguments.recipe or origin.recipe)
    if arguments.compile and not recipe.gpu:
        raise BuildError(f"{recipe.name} is an engine for a CPU: --compile is for the recipes of a GPU")
    origin = dataclasses.replace(origin, name=arguments.name or origin.name)
    output = arguments.output or models.output_of(origin.name)
    build(origin, recipe, output, force=arguments.force, least_agreement=arguments.least_agreement)
    for architecture in arguments.compile:
        from build_engines.vision.compile_check import compile_for
        from build_engines.vision.tensorrt_engine import FILE as GRAPH

        with stage(f"compiling {GRAPH} for compute capability {architecture}"):
            compile_for(output / GRAPH, architecture)
