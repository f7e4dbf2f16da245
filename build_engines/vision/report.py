"""The page that compares the recipes: docs/vision.md and its plots."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from build_engines.progress import console
from build_engines.vision import digits, models, photos
from build_engines.vision.build import build
from build_engines.vision.checkpoint import Images, Origin
from build_engines.vision.measure import BATCHES, Labels, Result, choose, measure
from build_engines.vision.recipes import RECIPES
from tandem.vision.classifier import load_classifier
from tandem.vision.manifest import VisionManifest
from tandem.vision.preprocess import ImageRule, pixels

ENGINES = Path(".cache/engines/vision")
KEEP = 0.99
FULL_SIZE = 224  # pixels that ResNet-50 was designed for; the digits that it is trained on here have 64
FULL_SIZE_BATCHES = (1, 8)
_RUNTIMES = ("openvino", "onnxruntime", "litert")  # those with recipes in fp32 and in int8
_TOOLS = ("openvino", "onnxruntime", "torch", "nncf", "nvidia-modelopt", "ai-edge-litert")
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def run(names: Sequence[str], output: Path, limit: int | None, rounds: int, keep: float, command: str) -> None:
    """Build every recipe that runs here, measure, print the tables, and write the page and its plots."""
    sections = []
    for name in names:
        origin = models.origin_of(name)
        recipes = [recipe for recipe in RECIPES.values() if not recipe.gpu]
        engines = [(recipe, ENGINES / f"{origin.name}-{recipe.name}") for recipe in recipes]
        for recipe, directory in engines:
            build(origin, recipe, directory, least_agreement=0.0)  # the report says how poor it is
        rule = VisionManifest.read(engines[0][1]).image
        images, labels = _validation(origin, rule, limit)
        results = measure(engines, images, labels, rounds)
        chosen = choose(results, keep)
        plot = output.with_name(f"{output.stem}-{origin.name}.svg")
        output.parent.mkdir(parents=True, exist_ok=True)
        draw(results, chosen, origin.name, plot)
        sections.append(section(origin, results, chosen, len(images), keep, plot.name))
        if name == models.RESNET:
            sections[-1] += full_size(name, rounds)
        print(sections[-1])
        console.print(f"fastest of {origin.name} that keeps {keep:.0%}: [bold]{chosen.recipe.name}[/]")
    output.write_text(page(sections, command, rounds), encoding="utf-8")
    console.print(f"written to {output}")


def _validation(origin: Origin, rule: ImageRule, limit: int | None) -> tuple[Images, Labels]:
    """Pictures that no engine was trained or calibrated with."""
    if origin.name == models.RESNET:
        written, labels = digits.held_out(limit)
        return digits.pictures(written, rule), labels
    from build_engines.vision.stamps import stamps

    return stamps(rule, limit)


def table(results: Sequence[Result], chosen: Result) -> str:
    """Markdown, the chosen row in bold."""
    head = ["recipe", "MB on disk", "peak MB", "p50 ms", "p99 ms"] + [f"img/s, {batch}" for batch in BATCHES]
    head += ["top-1", "top-5", "agreement", "logit error"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for result in results:
        found = result.accuracy
        assert found is not None
        cells = [result.recipe.name, f"{result.megabytes:.1f}", f"{result.memory_mb:.0f}"]
        cells += [f"{result.percentile(1, 50):.1f}", f"{result.percentile(1, 99):.1f}"]
        cells += [f"{result.rate(batch):.1f}" for batch in BATCHES]
        cells += [f"{found.top1:.1%}", f"{found.top5:.1%}", f"{found.agreement:.1%}", f"{found.logit_error:.3f}"]
        lines.append("| " + " | ".join(f"**{cell}**" if result is chosen else cell for cell in cells) + " |")
    return "\n".join(lines)


def section(origin: Origin, results: Sequence[Result], chosen: Result, count: int, keep: float, plot: str) -> str:
    """What there is to say of one model."""
    labelled = results[0].accuracy.labelled if results[0].accuracy else 0
    named = _named(origin, chosen)
    lines = [
        f"## {origin.name}\n\nFrom {origin.source}. {count} validation pictures, {labelled} of them with a label.\n",
        table(results, chosen),
        f"\nChosen: **{chosen.recipe.name}**, the fastest at batch 8 that keeps {keep:.0%} of the top-1 of "
        f"{results[0].recipe.name}.",
        *([text] if (text := ratios(results)) else []),
        *([f"The four photos: {named}."] if named else []),
        f"\n![{origin.name}]({plot})\n",
    ]
    return "\n".join(lines)


def full_size(name: str, rounds: int) -> str:
    """INT8 against fp32 for pictures of `FULL_SIZE` pixels: the same weights, so that only speed and size mean much."""
    origin = models.origin_of(f"{name}@{FULL_SIZE}")
    recipes = [RECIPES[f"{runtime}-{precision}"] for runtime in _RUNTIMES for precision in ("fp32", "int8")]
    engines = [(recipe, ENGINES / f"{origin.name}-{recipe.name}") for recipe in recipes]
    for recipe, directory in engines:
        build(origin, recipe, directory, least_agreement=0.0)
    rule = VisionManifest.read(engines[0][1]).image
    written, labels = digits.held_out(32)
    results = measure(engines, digits.pictures(written, rule), labels, rounds, batches=FULL_SIZE_BATCHES)
    head = ["recipe", "MB on disk", "peak MB", *(f"img/s, {batch}" for batch in FULL_SIZE_BATCHES)]
    lines = [
        f"\nThe same network for pictures of {FULL_SIZE} pixels, which it was designed for; speed alone:\n",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
    ]
    for result in results:
        cells = [result.recipe.name, f"{result.megabytes:.1f}", f"{result.memory_mb:.0f}"]
        cells += [f"{result.rate(batch):.1f}" for batch in FULL_SIZE_BATCHES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ratios(results, accuracy=False), ""])


def ratios(results: Sequence[Result], *, accuracy: bool = True) -> str:
    """INT8 against fp32 of the same runtime, from the same rounds; empty if there are no such pairs."""
    by_name = {result.recipe.name: result for result in results}
    lines = []
    for runtime in _RUNTIMES:
        full, small = by_name.get(f"{runtime}-fp32"), by_name.get(f"{runtime}-int8")
        if not (full and small and full.accuracy and small.accuracy):
            continue
        points = (small.accuracy.top1 - full.accuracy.top1) * 100
        kept = f", top-1 {points:+.1f} points" if accuracy else ""
        lines.append(
            f"{runtime}, int8 against fp32: {small.rate(8) / full.rate(8):.2f} times the throughput at batch 8, "
            f"{full.megabytes / small.megabytes:.1f} times smaller{kept}."
        )
    return " ".join(lines)


def _named(origin: Origin, result: Result) -> str:
    """What the chosen engine sees in the photos whose names are known; only for a model of ImageNet."""
    if origin.name == models.RESNET:
        return ""
    classifier = load_classifier(result.directory)
    seen = []
    for name in photos.NAMED:
        image = pixels(photos.opened(name), classifier.manifest.image)
        label = classifier.labels[int(classifier.infer(image[None])[0].argmax())]
        seen.append(f"{name} is {label}")
    return ", ".join(seen)


def page(sections: Sequence[str], command: str, rounds: int) -> str:
    """The whole Markdown page."""
    versions = ", ".join(f"{tool} {metadata.version(tool)}" for tool in _TOOLS)
    recipes = "\n".join(f"* `{recipe.name}`: {recipe.text}" for recipe in RECIPES.values())
    return f"""# Image classifiers: size, speed and accuracy of the engines

Made by `{command}` on {time.strftime("%Y-%m-%d")}: {versions}, {machine()}.

{chr(10).join(sections)}
## How it was measured

Each engine runs in a process of its own, which tells its peak memory. In each of {rounds} rounds all engines take
turns at every batch size; p50 and p99 are of all calls at batch 1, throughput is from the median call. The size is
that of the engine's whole directory, labels and manifest included. Agreement is that of the first choice with the
first row's, over all pictures; the logit error is the root mean square difference from the first row's logits, in
units of their spread. No picture of the validation sets trained or calibrated anything.

Recipes (those for TensorRT were compiled for compute capabilities 8.6, 8.9 and 12.0 in the tests, and not run: no GPU):

{recipes}
"""


def machine() -> str:
    """Cores, processor and the instructions that decide how fast INT8 and bfloat16 are."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    lines = text.splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    has = [name for name in _INSTRUCTIONS if name in flags]
    lacks = [name for name in _INSTRUCTIONS if name not in flags]
    cores = f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"
    return f"{cores} with {', '.join(has) or 'nothing'} and without {', '.join(lacks) or 'nothing'}"


def draw(results: Sequence[Result], chosen: Result, title: str, path: Path) -> None:
    """Throughput by batch, and accuracy by speed."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tandem"  # equal data gives an equal file
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for result in results:
        style: dict[str, Any] = {"linewidth": 3 if result is chosen else 1.2}
        (line,) = left.plot(BATCHES, [result.rate(batch) for batch in BATCHES], "o-", label=result.recipe.name, **style)
        assert result.accuracy is not None
        right.scatter(result.rate(8), result.accuracy.top1 * 100, s=result.megabytes * 4, color=line.get_color())
        right.annotate(result.recipe.name, (result.rate(8), result.accuracy.top1 * 100), fontsize=7, rotation=20)
    left.set(xscale="log", xlabel="batch", ylabel="pictures a second", title=f"{title}: throughput")
    left.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    tops = np.array([result.accuracy.top1 * 100 for result in results if result.accuracy])
    right.set_ylim(min(tops.min() - 1, 99 * tops[0] / 100 - 1), tops.max() + 1)
    right.axhline(tops[0] * KEEP, color="grey", linestyle=":", linewidth=1)
    right.set(xlabel="pictures a second at batch 8", ylabel="top-1, %", title="accuracy; area is size on disk")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
