"""GGUF files: weights, tokenizer, chat template and end tokens arrive as the model's authors meant them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import jinja2
import numpy as np
import pytest
import sentencepiece
import torch
from tiny_models import VOCABULARY, config, random_model
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig

from build_engines.errors import BuildError
from build_engines.fetch import fetch
from build_engines.gguf_checkpoint import convert
from build_engines.gguf_tokenizer import write_tokenizer
from build_engines.language import build, checkpoint_of
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import EngineOptions, Row, load_engine

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # llama.cpp: enum llama_token_type
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_level(pre: str, **more: Any) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer: special tokens, the 256 bytes, and merges to `he`, `20` and `Ġhe`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, "he", "20", "Ġhe"]
    tokens += [f"<unused{index}>" for index in range(VOCABULARY - len(tokens))]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e", "2 0", "Ġ he"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    } | more


def written(fields: dict[str, Any], directory: Path) -> Tokenizer:
    write_tokenizer(fields, directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def test_smollm_splits_digits_which_others_merge(tmp_path: Path) -> None:
    text = "he 2020"
    assert written(byte_level("smollm"), tmp_path).encode(text).tokens == ["he", "Ġ", "2", "0", "2", "0"]
    assert written(byte_level("gpt-2"), tmp_path).encode(text).tokens == ["he", "Ġ", "20", "20"]
    assert written(byte_level("llama-bpe"), tmp_path).encode(text).tokens == ["he", "Ġ", "20", "2", "0"]


def test_special_tokens_are_single_and_no_token_is_added(tmp_path: Path) -> None:
    tokenizer = written(byte_level("smollm"), tmp_path)
    assert tokenizer.encode("<|im_start|>he<|im_end|>").ids == [1, tokenizer.token_to_id("he"), 2]
    assert tokenizer.get_vocab_size(with_added_tokens=True) == VOCABULARY
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("wanted", [True, False])
def test_bos_is_put_before_a_text_where_the_file_says_so(tmp_path: Path, wanted: bool) -> None:
    fields = byte_level("smollm") | {"tokenizer.ggml.add_bos_token": wanted}
    assert written(fields, tmp_path).encode("h").tokens == ["<|im_start|>", "h"][not wanted :]


def test_text_comes_back(tmp_path: Path) -> None:
    tokenizer = written(byte_level("smollm"), tmp_path)
    text = " he said: 12 Äpfel, 三つ\n\tand 🎉"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "chatglm-bpe"}, "pre-tokenizer chatglm-bpe, which is not known here. Known: default"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer of kind rwkv; known: gpt2"),
    ],
)
def test_unknown_tokenizers_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        write_tokenizer(byte_level("smollm") | change, tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenizer_equals_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    """Llama 2, Mistral and Gemma: pieces and scores in, the same token ids as the original library out."""
    text = Path(__file__).read_text(encoding="utf-8")
    (tmp_path / "text").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "pieces"), vocab_size=600, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=prefix, normalization_rule_name="identity", minloglevel=2,
        remove_extra_whitespaces=False, split_digits=True, max_sentence_length=100000,
    )  # fmt: skip
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model"))
    size = original.get_piece_size()
    kinds = [
        CONTROL if original.is_control(i) else BYTE if original.is_byte(i) else UNKNOWN if i == 0 else NORMAL
        for i in range(size)
    ]
    fields = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [original.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [original.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": original.bos_id(),
        "tokenizer.ggml.eos_token_id": original.eos_id(),
        "tokenizer.ggml.unknown_token_id": original.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    tokenizer = written(fields, tmp_path)
    for line in [*text.splitlines(), " two  spaces, 2025 and Ünknöwn 三つ 🎉 "]:
        assert tokenizer.encode(line, add_special_tokens=False).ids == original.encode(line), line
        assert tokenizer.decode(original.encode(line)) == line
    assert tokenizer.encode("he").ids[0] == original.bos_id()


def write_gguf(path: Path, model: Any, fields: dict[str, Any], extra_tensors: tuple[str, ...] = ()) -> None:
    """A Llama in GGUF, as llama.cpp's converter writes it: linear layers in Q8_0, the rest in f32."""
    settings = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_vocab_size(settings.vocab_size)
    for key, value in fields.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        array = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = settings.num_attention_heads if "q_proj" in name else settings.num_key_value_heads
            array = interleaved(array, heads)
        stored = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 2 and "embed" not in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, array)
    for name in extra_tensors:
        writer.add_tensor(name, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp pairs neighbouring dimensions in its rotary embedding, Hugging Face the two halves."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model(config(LlamaConfig, num_hidden_layers=2, bos_token_id=1, eos_token_id=2))


@pytest.fixture(scope="module")
def tiny(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "Tiny.Q8_0.gguf"
    write_gguf(path, model, byte_level("smollm"))
    return path


def test_checkpoint_from_gguf_is_the_model_up_to_its_quantization(model: Any, tiny: Path, tmp_path: Path) -> None:
    directory = checkpoint_of(resolve(str(tiny)), tmp_path)
    again = AutoModelForCausalLM.from_pretrained(directory)
    for name, tensor in model.state_dict().items():
        error = (again.state_dict()[name] - tensor).abs().max()
        assert error <= tensor.abs().max() / 127, name  # half a step of Q8_0 or less; 0 where it is stored in f32
    assert again.config.tie_word_embeddings
    assert convert(tiny, directory) == directory  # a second time it is found


def test_engine_from_gguf_equals_torch_on_the_same_weights(tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # where .cache/models appears
    manifest = build(resolve(str(tiny)), tmp_path / "engine", Recipe("fp32", kv_cache="f32"))
    assert (manifest.name, manifest.source) == ("Tiny.Q8_0", "Tiny.Q8_0.gguf")
    assert (manifest.bos_token_id, manifest.eos_token_ids, manifest.add_bos) == (1, (2,), False)
    assert (tmp_path / "engine" / "chat_template.jinja").read_text() == TEMPLATE
    oracle = AutoModelForCausalLM.from_pretrained(checkpoint_of(resolve(str(tiny))), attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, 50).tolist()
    with torch.no_grad():
        expected = oracle(torch.tensor([tokens])).logits[0].numpy()
    found = load_engine(tmp_path / "engine", EngineOptions(kv_cache_mb=16)).forward([Row(tokens, 0, [0, 1], 50)])
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_rotary_scaling_table_is_refused(model: Any, tmp_path: Path) -> None:
    """Llama 3.1 and later hold one; transformers drops it without a word."""
    write_gguf(tmp_path / "scaled.gguf", model, byte_level("llama-bpe"), extra_tensors=("rope_freqs.weight",))
    with pytest.raises(BuildError, match=r"rope_freqs.*Build from the Hugging Face checkpoint"):
        convert(tmp_path / "scaled.gguf", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["scaled.gguf"]


def test_unsupported_architecture_is_refused_before_the_work(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BuildError, match="architecture mamba is not supported"):
        convert(tmp_path / "other.gguf", tmp_path / "out")


def test_truncated_file_is_damaged(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(tiny.read_bytes()[:5000])
    with pytest.raises(BuildError, match="damaged"):
        convert(tmp_path / "half.gguf", tmp_path / "out")


def test_default_model_has_the_tokenizer_of_smollm2() -> None:
    """Token ids as the tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct gives them."""
    directory = checkpoint_of(resolve(str(fetch())))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.encode("In 2025").tokens == ["In", "Ġ", "2", "0", "2", "5"]
    assert tokenizer.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.get_vocab_size(with_added_tokens=True) == 49152
    template = jinja2.Template((directory / "chat_template.jinja").read_text(encoding="utf-8"))
    text = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer.encode(text).ids
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
