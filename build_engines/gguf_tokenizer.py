"""The tokenizer inside a GGUF file, written as the files that Hugging Face tools read.

The pre-tokenizers are those of the original checkpoints; llama.cpp names them in `tokenizer.ggml.pre`. transformers'
reader ignores that name, which loses the digit splitter, confuses the end token with the start token and adds five
tokens beyond the vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from build_engines.errors import BuildError

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp: enum llama_token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLIT = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}
_DIGITS = {"smollm"}
_PLAIN = {"default", "gpt-2"}


def write_tokenizer(fields: dict[str, Any], output: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.

    `fields`: metadata of the GGUF file by key. Raises `BuildError` for a kind of tokenizer that is not known.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(fields)
    elif kind == "llama":
        tokenizer = _sentencepiece(fields)
    else:
        raise BuildError(f"the GGUF file has a tokenizer of kind {kind}; known: gpt2 (BPE), llama (SentencePiece)")
    _finish(tokenizer, fields)
    tokenizer.save(str(output / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.get(f"{fields['general.architecture']}.context_length"),
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (token_id := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{role}_token"] = tokens[token_id]
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (output / "tokenizer_config.json").write_text(text, encoding="utf-8")
    if template := fields.get("tokenizer.chat_template"):
        (output / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(fields: dict[str, Any]) -> Any:
    """Byte-level BPE (GPT-2 and its descendants) with the pre-tokenizer that the file names."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = fields.get("tokenizer.ggml.pre", "default")
    if name in _DIGITS:
        first = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    elif name in _SPLIT:
        first = pre_tokenizers.Split(Regex(_SPLIT[name]), behavior="isolated")
        split = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif name in _PLAIN:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        known = ", ".join(sorted(_DIGITS | _PLAIN | _SPLIT.keys()))
        raise BuildError(f"the GGUF file names the pre-tokenizer {name}, which is not known here. Known: {known}.")
    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    # Llama 3 takes a pretoken that is in the vocabulary as it is, even where its merges would not build it.
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(fields: dict[str, Any]) -> Any:
    """SentencePiece BPE with byte fallback (Llama 1 and 2, Mistral, Gemma)."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(tokens, scores, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return tokenizer


def _merges(tokens: list[str], scores: list[float], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores stand for: every split of a piece into two pieces, best score first."""
    found = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for _, _, _, left, right in found]


def _finish(tokenizer: Any, fields: dict[str, Any]) -> None:
    """Mark the special tokens, and put BOS before a text where the model wants it."""
    from tokenizers import AddedToken, processors

    tokens = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type", [])
    kinds = list(zip(tokens, types, strict=False))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t, kind in kinds if kind == _CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds if kind == _USER_DEFINED])
    bos = fields.get("tokenizer.ggml.bos_token_id")
    wanted = fields.get("tokenizer.ggml.add_bos_token", fields["tokenizer.ggml.model"] == "llama")
    if wanted and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], pair=[tokens[bos], "$A", tokens[bos], "$B"], special_tokens=[(tokens[bos], bos)]
        )
