"""Building: nothing twice, nothing half, and errors that name the problem."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import config, random_model, save
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from build_engines import export, recipe
from build_engines.__main__ import main
from build_engines.errors import BuildError
from build_engines.language import build
from build_engines.recipe import Recipe
from build_engines.source import resolve
from tandem.engines import EngineOptions, Row, load_engine
from tandem.manifest import Manifest

FP32 = Recipe("fp32", kv_cache="f32")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the fp32 engine of it."""
    directory = tmp_path_factory.mktemp("pristine")
    checkpoint = save(random_model(config(LlamaConfig, num_hidden_layers=1)), directory / "checkpoint")
    build(resolve(str(checkpoint)), directory / "engine", FP32)
    return checkpoint, directory / "engine"


@pytest.fixture
def checkpoint(pristine: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine[0], tmp_path / "checkpoint"))


@pytest.fixture
def engine(pristine: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine[1], tmp_path / "engines" / "tiny"))


def graph_time(engine: Path) -> int:
    return (engine / "openvino_model.bin").stat().st_mtime_ns


def left_over(engine: Path) -> list[str]:
    return sorted(item.name for item in engine.parent.iterdir() if item != engine)


def test_engine_holds_all_a_server_needs(engine: Path) -> None:
    manifest = Manifest.load(engine)
    assert (manifest.kind, manifest.architecture, manifest.weights) == ("language", "llama", "fp32")
    assert (manifest.vocab_size, manifest.context_length) == (512, 512)
    assert (manifest.bos_token_id, manifest.eos_token_ids, manifest.add_bos) == (1, (2,), False)
    assert {"openvino_model.xml", "openvino_model.bin", "tokenizer.json", "config.json"} <= manifest.files.keys()
    assert str(engine.parent.parent) not in (engine / "manifest.json").read_text()


def test_second_build_does_nothing_and_imports_nothing_heavy(checkpoint: Path, engine: Path) -> None:
    before = graph_time(engine)
    arguments = ["language", str(checkpoint), "--weights", "fp32", "--kv-cache", "f32", "--output", str(engine)]
    program = (
        "import sys; from build_engines.__main__ import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in ('torch', 'transformers', 'openvino', 'nncf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"
    assert "is up to date" in done.stderr
    assert graph_time(engine) == before


@pytest.mark.parametrize("reason", ["force", "other weights", "damage", "missing file", "other source"])
def test_engine_that_does_not_fit_is_built_again(checkpoint: Path, engine: Path, reason: str) -> None:
    before, wanted = graph_time(engine), FP32
    if reason == "other weights":
        wanted = Recipe("int8")
    elif reason == "damage":
        with (engine / "openvino_model.bin").open("r+b") as file:
            file.write(b"\xff")
    elif reason == "missing file":
        (engine / "tokenizer.json").unlink()
    elif reason == "other source":
        (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    manifest = build(resolve(str(checkpoint)), engine, wanted, force=reason == "force")
    assert graph_time(engine) != before
    assert Manifest.load(engine) == manifest
    assert left_over(engine) == []


def test_run_time_settings_change_the_manifest_only(checkpoint: Path, engine: Path) -> None:
    before = graph_time(engine)
    manifest = build(resolve(str(checkpoint)), engine, Recipe("fp32", kv_cache="u8", dynamic_quantization_group=32))
    assert (manifest.kv_cache, manifest.dynamic_quantization_group) == ("u8", 32)
    assert Manifest.load(engine) == manifest
    assert graph_time(engine) == before


def test_key_follows_what_the_files_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        item.build_key(source)
        for source in ("one", "two")
        for item in (
            Recipe("fp32"),
            Recipe("int8"),
            Recipe("int4"),
            Recipe("int4", 64),
            Recipe("int4", zero_points="none"),
        )
    }
    assert len(keys) == 10
    assert Recipe("int8").build_key("one") in keys
    assert Recipe("int8", kv_cache="f16", activations="bf16").build_key("one") in keys  # these are chosen at load
    monkeypatch.setattr(recipe.metadata, "version", lambda name: "9.9")
    assert Recipe("int8").build_key("one") not in keys


@pytest.mark.parametrize(("weights", "nearness"), [("bf16", 0.999), ("int8", 0.99), ("int4", 0.9)])
def test_compressed_weights_are_smaller_and_near(
    checkpoint: Path, engine: Path, tmp_path: Path, weights: str, nearness: float
) -> None:
    """Nearness is the cosine between the logits of the compressed engine and those in fp32."""
    small = tmp_path / "engines" / weights
    build(resolve(str(checkpoint)), small, Recipe(weights, group_size=32))
    tokens = np.random.default_rng(0).integers(3, 512, 60).tolist()
    options = EngineOptions(kv_cache_mb=16, kv_cache="f32", activations="f32")
    one, other = (
        load_engine(item, options).forward([Row(tokens, 0, [0, 1], 60)]).ravel().copy() for item in (engine, small)
    )
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > nearness
    sizes = [(item / "openvino_model.bin").stat().st_size for item in (engine, small)]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("there", [False, True])
def test_interrupted_build_changes_nothing(
    checkpoint: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_compress", stop)
    output = engine if there else engine.with_name("new")
    with pytest.raises(KeyboardInterrupt):
        build(resolve(str(checkpoint)), output, Recipe("int8"))
    assert left_over(engine) == []
    assert Manifest.load(engine).weights == "fp32"


def test_ctrl_c_ends_the_command_cleanly(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "engine"
    command = [sys.executable, "-m", "build_engines", "language", str(checkpoint), "--output", str(output)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(output.parent.glob(".engine.build-*")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("interrupted; nothing was changed")
    assert list(output.parent.iterdir()) == []


def test_what_a_killed_build_left_is_removed(checkpoint: Path, engine: Path) -> None:
    engine.with_name(".tiny.build-1").mkdir()
    os.rename(engine, engine.with_name(".tiny.old-1"))  # killed between the two renames
    build(resolve(str(checkpoint)), engine, FP32)
    assert left_over(engine) == []
    assert Manifest.load(engine).weights == "fp32"


def test_full_disk_is_named(checkpoint: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_compress", fail)
    with pytest.raises(BuildError, match=r"the disk that holds .* is full"):
        build(resolve(str(checkpoint)), engine, Recipe("int8"))
    assert left_over(engine) == []


def test_directory_with_other_things_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="exists and holds no engine"):
        build(resolve(str(checkpoint)), tmp_path / "mine", FP32)
    with pytest.raises(BuildError, match="exists and holds no engine"):
        build(resolve(str(checkpoint)), tmp_path / "mine", FP32, force=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_source_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["language", "no/such/model.gguf"]) == 1
    assert "error: no such file or directory: no/such/model.gguf" in capsys.readouterr().err


def test_source_that_is_no_checkpoint(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(BuildError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(BuildError, match=r"holds no config\.json\. It holds model\.gguf"):
        resolve(str(tmp_path))
    with pytest.raises(BuildError, match="is no GGUF file: it starts with b'PK"):
        resolve(str(tmp_path / "model.gguf"))
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BuildError, match="but no weights"):
        resolve(str(checkpoint))


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BuildError, match=r"some/model: .* the Hugging Face hub did not deliver it: Name or service"):
        resolve("some/model")


def test_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    checkpoint = save(model, tmp_path / "gpt2")
    with pytest.raises(BuildError, match=r"architecture gpt2 is not supported\. Supported: llama .*gemma3_text"):
        build(resolve(str(checkpoint)), tmp_path / "engine", FP32)
    assert not (tmp_path / "engine").exists()


def test_missing_weight_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """Transformers would fill it with random numbers and go on."""
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BuildError, match=r"1 weights are missing, the first is model\.layers\.0\.mlp\.up_proj\.weight"):
        build(resolve(str(checkpoint)), tmp_path / "engine", FP32)


def test_every_token_that_ends_a_turn_is_found(checkpoint: Path, tmp_path: Path) -> None:
    """From the generation configuration, the tokenizer, and the template of a chat format with a known end."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<end_of_turn>"] = 300
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    template = "{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}"
    (checkpoint / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "!"}, "chat_template": template})
    )
    manifest = build(resolve(str(checkpoint)), tmp_path / "engine", FP32)
    assert manifest.eos_token_ids == (2, 3, 5, 300)
    assert (tmp_path / "engine" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": "fp8"}, "precision fp8 of the weights is not known; choose one of fp32, bf16"),
        ({"kv_cache": "bf16"}, "a bf16 KV cache needs bf16 activations"),
        ({"group_size": 48}, "group size 48: choose one of 32"),
        ({"dynamic_quantization_group": -1}, "must not be negative"),
    ],
)
def test_recipe_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        Recipe(**wrong)


def test_a_pair_with_different_tokenizers_is_refused_before_it_is_built(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    outputs = ["--output", str(tmp_path / "target"), "--draft-output", str(tmp_path / "draft")]
    assert main(["pair", "--target", str(checkpoint), "--draft", str(other), *outputs]) == 1
    assert "cannot draft for" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m build_engines language Qwen/" in capsys.readouterr().out
