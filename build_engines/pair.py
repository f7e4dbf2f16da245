"""A target and the draft that speculates for it: two engines that must share their tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from build_engines.errors import BuildError
from build_engines.language import build, checkpoint_of
from build_engines.progress import console, stage
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.manifest import sha256_of_file


def build_pair(target: Source, draft: Source, outputs: tuple[Path, Path], recipes: tuple[Recipe, Recipe]) -> None:
    """Build both engines, the target's first.

    Raises:
        BuildError: their tokenizers differ, before anything is built; or one of them cannot be built.
    """
    with stage("comparing the tokenizers"):
        ours, theirs = tokenizer_sha256(target), tokenizer_sha256(draft)
    if ours != theirs:
        raise BuildError(
            f"{draft.name} cannot draft for {target.name}: their tokenizers differ (sha256 {theirs[:16]}... and "
            f"{ours[:16]}...). A draft must come from the same model family, with the very same tokenizer.json"
        )
    for source, output, recipe in zip((target, draft), outputs, recipes, strict=True):
        build(source, output, recipe)
    console.print(f"  [green]✓[/] {draft.name} drafts for {target.name}: `make serve` loads both")


def tokenizer_sha256(source: Source) -> str:
    """SHA-256 of the tokenizer.json that an engine of this source will have."""
    from build_engines.describe import write_tokenizer_files

    with tempfile.TemporaryDirectory(prefix="tandem-tokenizer-") as directory:
        write_tokenizer_files(checkpoint_of(source), Path(directory))
        return sha256_of_file(Path(directory) / "tokenizer.json")
