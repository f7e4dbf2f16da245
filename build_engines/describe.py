"""The files beside the graph: tokenizer, chat template, configuration, and the manifest over all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError
from build_engines.recipe import Recipe
from build_engines.source import Source
from tandem.manifest import Manifest, runtime_version, sha256_of_file

# Tokens that end a turn in the chat formats of the supported models.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")


def write_tokenizer_files(checkpoint: Path, output: Path) -> None:
    """Copy the tokenizer, chat template and configurations of `checkpoint` to `output`.

    A tokenizer that exists only in SentencePiece or slow form is converted to tokenizer.json; a chat template inside
    tokenizer_config.json becomes chat_template.jinja. Raises `BuildError` if there is no usable tokenizer.
    """
    if (checkpoint / "tokenizer.json").is_file():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, output / name)
    else:
        _convert_tokenizer(checkpoint, output)
    for name in ("chat_template.jinja", "config.json", "generation_config.json"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, output / name)
    if not (output / "chat_template.jinja").exists():
        template = _read(output / "tokenizer_config.json").get("chat_template")
        if isinstance(template, list):  # several named ones
            template = next((item["template"] for item in template if item.get("name") == "default"), None)
        if template:
            (output / "chat_template.jinja").write_text(template, encoding="utf-8")


def _convert_tokenizer(checkpoint: Path, output: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, use_fast=True)
        tokenizer.save_pretrained(output)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BuildError(f"{checkpoint.name}: no usable tokenizer: {str(error).splitlines()[0]}") from error
    if not (output / "tokenizer.json").is_file():
        raise BuildError(f"{checkpoint.name}: its tokenizer cannot be converted to tokenizer.json")


def describe(directory: Path, source: Source, recipe: Recipe, config: Any, name: str | None) -> Manifest:
    """The manifest of the engine in `directory`, which must hold all its other files already."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    bos = _bos(directory, config, tokenizer)
    files = {item.name: sha256_of_file(item) for item in sorted(directory.iterdir()) if item.is_file()}
    return Manifest(
        kind="language",
        name=name or source.name.removesuffix(".gguf"),
        architecture=config.model_type,
        source=source.name,
        source_sha256=source.sha256,
        tokenizer_sha256=files["tokenizer.json"],
        weights=recipe.weights_label,
        activations=recipe.activations,
        kv_cache=recipe.kv_cache,
        dynamic_quantization_group=recipe.dynamic_quantization_group,
        runtime=recipe.runtime,
        runtime_version=runtime_version(recipe.runtime) or "",
        vocab_size=config.vocab_size,
        context_length=min(
            config.max_position_embeddings, recipe.length if recipe.is_onnx else config.max_position_embeddings
        ),
        bos_token_id=bos,
        eos_token_ids=_eos(directory, config, tokenizer),
        add_bos=bos is not None and tokenizer.encode("a").ids[:1] == [bos],
        build_key=recipe.build_key(source.sha256),
        files=files,
    )


def _bos(directory: Path, config: Any, tokenizer: Any) -> int | None:
    for name in ("generation_config.json", "config.json"):
        if isinstance(token := _read(directory / name).get("bos_token_id"), int):
            return token
    text = _text(_read(directory / "tokenizer_config.json").get("bos_token"))
    return None if text is None else tokenizer.token_to_id(text)


def _eos(directory: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a text or a turn, from all the places that checkpoints note one in.

    A GGUF file names a single end token; the one of its chat format is then found in the template.
    """
    found: set[int] = set()
    for entry in (
        _read(directory / "generation_config.json").get("eos_token_id"),
        getattr(config, "eos_token_id", None),
    ):
        found.update(entry if isinstance(entry, list) else [] if entry is None else [entry])
    text = _text(_read(directory / "tokenizer_config.json").get("eos_token"))
    template = directory / "chat_template.jinja"
    rendered = template.read_text(encoding="utf-8") if template.is_file() else ""
    for token in (text, *(end for end in _TURN_ENDS if end in rendered)):
        if token is not None and (token_id := tokenizer.token_to_id(token)) is not None:
            found.add(token_id)
    if not found:
        raise BuildError("neither the configuration nor the tokenizer names a token that ends a text")
    return tuple(sorted(found))


def _text(token: Any) -> str | None:
    """Special tokens are stored as a string or as an object with the string in `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
